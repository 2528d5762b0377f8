package store_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

// killEnv holds the options for a copy of the test binary that writes until it is killed.
const killEnv = "STORE_KILL_OPTIONS"

// killChild stores numbers and prints each after its commit: from then on it is acknowledged.
func killChild() {
	var o store.Options
	err := json.Unmarshal([]byte(os.Getenv(killEnv)), &o)
	if o.Driver == store.DriverPostgres {
		o.Postgres.Password = storetest.Password // JSON says [redacted]
	}
	s, err2 := store.Open(context.Background(), o)
	if err := errors.Join(err, err2); err != nil {
		fmt.Println("failed:", err)
		os.Exit(3)
	}
	for i := 0; ; i++ {
		err := s.Update(context.Background(), func(tx *store.Tx) error {
			if err := tx.SetSetting("n"+strconv.Itoa(i), "x"); err != nil {
				return err
			}
			_, err := tx.Enqueue("k", strconv.Itoa(i%3), []byte(strconv.Itoa(i)), day)
			return err
		})
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(3)
		}
		fmt.Println(i)
	}
}

// What was acknowledged is there after kill -9, whole transactions only, and the database opens again at once.
func TestNothingAcknowledgedIsLostByKill(t *testing.T) {
	t.Parallel()
	storetest.Options(t, func(t *testing.T, o store.Options) {
		o.Exclusive = true
		o.Log = nil
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		env, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), killEnv+"="+string(env))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := -1
		for sc := bufio.NewScanner(out); sc.Scan(); {
			n, err := strconv.Atoi(sc.Text())
			if err != nil {
				t.Fatal(sc.Text())
			}
			acknowledged = n
			if n == 40 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		if acknowledged < 40 {
			t.Fatalf("only %d", acknowledged)
		}
		o.Exclusive = false // the server of PostgreSQL may take a moment to notice
		s := storetest.Open(t, o)
		all := get(t, s, (*store.Tx).OutboxAll)
		if len(all) < acknowledged+1 || len(all) > acknowledged+2 {
			t.Errorf("%d entries, %d acknowledged", len(all), acknowledged+1)
		}
		for i, e := range all {
			if string(e.Payload) != strconv.Itoa(i) || e.ID != int64(i)+1 {
				t.Errorf("entry %d: %+v", i, e)
			}
			get(t, s, func(tx *store.Tx) (string, error) { return tx.Setting("n" + strconv.Itoa(i)) })
		}
		if findings, err := s.Check(t.Context()); err != nil || len(findings) > 0 {
			t.Errorf("check: %v, %v", strings.Join(findings, "; "), err)
		}
	})
}
