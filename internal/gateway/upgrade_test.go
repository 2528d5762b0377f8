package gateway

func upgradeChild() bool { return false }
