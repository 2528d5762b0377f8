package config

func (l *loader) static()                            {}
func (l *loader) environment()                       {}
func (l *loader) legacy(main, server, secrets *node) {}
