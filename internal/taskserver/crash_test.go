package taskserver

const crashEnv = "TASKSERVER_CRASH"

func crashChild() {}
