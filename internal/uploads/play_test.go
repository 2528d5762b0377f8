package uploads

func playServer(string) {}
