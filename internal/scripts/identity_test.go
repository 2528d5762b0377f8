package scripts

import "testing"

// TestUIDReply refuses numbers that no ordinary account has, before anybody looks at them.
//
//attack:actor malicious script
//attack:does Answers a login with the uid of root, with the number that means "no uid", or with one that is cut to another.
//attack:control Numbers that no ordinary account has are refused, and the policy looks at all others.
//attack:remove internal/scripts/identity.go: case *r.UID <= 0 || *r.UID >= 1<<32-1: => case false:
func TestUIDReply(t *testing.T) {
	t.Parallel()
	for out, good := range map[string]bool{
		`{"uid":2001}`: true, `{"uid":4294967294}`: true, `{"uid":2001,"message":"made"}`: true,
		`{"uid":0}`: false, `{"uid":-1}`: false, `{"uid":4294967295}`: false, `{"uid":4294969297}`: false, `{"uid":18446744073709551617}`: false,
		`{}`: false, `{"uid":null}`: false, `{"uid":"2001"}`: false, `{"uid":2001.5}`: false, `{"uid":[2001]}`: false,
	} {
		a, err := parseAnswer([]byte(out), 1)
		if err != nil {
			t.Fatal(err)
		}
		var reply UIDReply
		if _, err := a.decode(&reply); (err == nil) != good {
			t.Errorf("%s: %v", out, err)
		}
	}
}
