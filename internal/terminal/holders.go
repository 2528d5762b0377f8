package terminal

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// startPatience is how long a holder may take to start its shell.
	startPatience = 20 * time.Second
	// talkPatience is how long a holder may take to answer.
	talkPatience = 3 * time.Second
)

// holders starts, finds and ends the holders of this account.
type holders struct {
	uid     uint32
	program string // that holds terminals; as in /proc/self/exe
	site    string // keeps apart those of several providers on one machine
}

// prefix begins the names of the sockets of this account's holders.
func (s *holders) prefix() string { return fmt.Sprintf("@ucloud-terminal-%s-%d-", s.site, s.uid) }

// found is a holder that answers.
type found struct {
	socket string
	state
}

// list finds all holders. Names that others have taken are passed over: the kernel says whose they are.
func (s *holders) list(ctx context.Context) ([]found, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil, fmt.Errorf("list terminals: %w", err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	var names []string
	prefix := []byte(s.prefix())
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// Num RefCount Protocol Flags Type St Inode Path (proc_net_unix(5)); the flag says that it listens.
		if !bytes.Contains(lines.Bytes(), prefix) {
			continue
		}
		fields := strings.Fields(lines.Text())
		if len(fields) == 8 && fields[3] == "00010000" && strings.HasPrefix(fields[7], string(prefix)) {
			names = append(names, fields[7])
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list terminals: %w", err)
	}
	all := make([]*found, len(names))
	var asking sync.WaitGroup
	for i, name := range names[:min(len(names), maxListed)] {
		asking.Go(func() {
			if st, err := s.ask(ctx, name); err == nil {
				all[i] = &found{name, st}
			}
		})
	}
	asking.Wait()
	var out []found
	for _, f := range all {
		if f != nil {
			out = append(out, *f)
		}
	}
	return out, nil
}

// maxListed bounds how many names are looked at; others may have made any number of them.
const maxListed = 2000

// dial connects to a holder of this account.
func (s *holders) dial(ctx context.Context, name string) (*net.UnixConn, error) {
	d := net.Dialer{Timeout: talkPatience}
	c, err := d.DialContext(ctx, "unix", name)
	if err != nil {
		return nil, err
	}
	u := c.(*net.UnixConn) //nolint:forcetypeassert // the network says so
	if uid, err := peerUID(u); err != nil || uid != s.uid {
		u.Close() //nolint:errcheck // not ours
		return nil, errors.New("this is somebody else's")
	}
	u.SetDeadline(time.Now().Add(talkPatience)) //nolint:errcheck // a socket has deadlines
	return u, nil
}

func (s *holders) ask(ctx context.Context, name string) (state, error) {
	c, err := s.dial(ctx, name)
	if err != nil {
		return state{}, err
	}
	defer c.Close() //nolint:errcheck // it has ended
	if _, err := c.Write(appendFrame(nil, kindQuery, nil)); err != nil {
		return state{}, err
	}
	kind, p, err := readFrame(c, make([]byte, maxFrame))
	if err != nil || kind != kindState {
		return state{}, errors.Join(err, errFrame)
	}
	var st state
	return st, json.Unmarshal(p, &st)
}

// end asks a holder to end its shell.
func (s *holders) end(ctx context.Context, name string) error {
	c, err := s.dial(ctx, name)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // it has ended
	_, err = c.Write(appendFrame(nil, kindKill, nil))
	return err
}

// errBusy tells that somebody uses the terminal.
var errBusy = errors.New("the terminal is in use")

// attach takes a terminal. What comes from the connection then are frames of output.
func (s *holders) attach(ctx context.Context, name string, z size) (*net.UnixConn, error) {
	c, err := s.dial(ctx, name)
	if err != nil {
		return nil, err
	}
	_, err = c.Write(appendFrame(nil, kindAttach, z.append(nil)))
	if err == nil {
		var kind byte
		kind, _, err = readFrame(c, make([]byte, maxFrame))
		if err == nil && kind == kindBusy {
			err = errBusy
		} else if err == nil && kind != kindTaken {
			err = errFrame
		}
	}
	if err != nil {
		c.Close() //nolint:errcheck // it has ended
		return nil, err
	}
	c.SetDeadline(time.Time{}) //nolint:errcheck // as above
	return c, nil
}

// start makes a holder, with the descriptor of a directory as its working directory, and gives the name of its socket.
func (s *holders) start(ctx context.Context, o order, dir *os.File) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	o.Socket = s.prefix() + rand.Text()
	doc, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("start a terminal: %w", err)
	}
	cmd := exec.CommandContext(ctx, s.program)
	cmd.Args = []string{"ucloud-terminal"}
	cmd.Env = []string{HolderEnv + "=" + holderFirst}
	cmd.Stdin = bytes.NewReader(doc)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if dir != nil {
		cmd.Dir = fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	}
	answer, err := cmd.StdoutPipe()
	if err != nil {
		return "", fmt.Errorf("start a terminal: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start a terminal: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { answer.Close() }) //nolint:errcheck // it wakes the reader
	text, err := io.ReadAll(io.LimitReader(answer, 4<<10))    // until the holder lets go of it
	stop()
	cmd.Wait() //nolint:errcheck // the text says it
	if got := strings.TrimSpace(string(text)); got != ready {
		return "", fmt.Errorf("start a terminal: %q, %w", got, errors.Join(err, ctx.Err(), errNoShell))
	}
	return o.Socket, nil
}

var errNoShell = errors.New("the shell does not start")
