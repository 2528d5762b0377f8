package jobrunner

// childEnv names what a child of the tests is to do.
const childEnv = "JOBRUNNER_CHILD"

func runChild(string) {}
