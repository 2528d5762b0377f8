package launcher_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit/accounts"
)

func notify(ch chan os.Signal) { signal.Notify(ch, syscall.SIGTERM) }

// A client is a program of some local user that tries something. It says on standard output what came of it.
//
//	hello                    say hello without being started by the server
//	resume PORT ROUTE        say hello as an instance that lost the server, with a listener of one's own
//	talk PORT                send a request to a port and tell what comes back
//	squat PORT               bind a port, say "bound", and hold it until killed
func clientMain() int {
	args := strings.Fields(os.Getenv("IMT_ARGS"))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var result string
	switch args[0] {
	case "hello":
		result = sayHello(ctx, ipcapi.Hello{Protocol: ipcapi.Protocol})
	case "hello-detached":
		result = sayHello(ctx, ipcapi.Hello{Protocol: ipcapi.Protocol, Detached: true})
	case "resume":
		var h ipcapi.Hello
		if err := json.Unmarshal([]byte(args[1]), &h); err != nil {
			return 2
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 2
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			return 2
		}
		result = sayHello(ctx, h, f)
	case "ready":
		result = callReady(ctx)
	case "talk":
		result = talk(args[1])
	case "squat":
		l, err := net.Listen("tcp", args[1])
		if err != nil {
			result = err.Error()
			break
		}
		fmt.Println("bound")
		for {
			c, err := l.Accept()
			if err != nil {
				return 0
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			fmt.Println("got", line)
			c.Close() //nolint:errcheck // a test
		}
	}
	fmt.Println(result)
	return 0
}

func dialServer(ctx context.Context) (*ipc.Client, error) {
	return ipc.Dial(ctx, os.Getenv("IMT_SOCKET"), ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
}

func sayHello(ctx context.Context, h ipcapi.Hello, files ...*os.File) string {
	c, err := dialServer(ctx)
	if err != nil {
		return "dial: " + err.Error()
	}
	defer c.Close() //nolint:errcheck // a test
	r, err := ipc.Open(ctx, c, ipcapi.InstanceHello, h, files...)
	if err != nil {
		return "open: " + err.Error()
	}
	item, got, err := r.Next(ctx)
	if err != nil {
		return fmt.Sprintf("refused %d", failure.KindOf(err).Status())
	}
	return fmt.Sprintf("item %s with %d files", item.Kind, len(got))
}

func callReady(ctx context.Context) string {
	c, err := dialServer(ctx)
	if err != nil {
		return "dial: " + err.Error()
	}
	defer c.Close() //nolint:errcheck // a test
	if _, err := ipc.Invoke(ctx, c, ipcapi.InstanceReady, ipcapi.Ready{Route: 1}); err != nil {
		return fmt.Sprintf("refused %d", failure.KindOf(err).Status())
	}
	return "accepted"
}

func talk(port string) string {
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if errors.Is(err, syscall.ECONNRESET) {
		return "nothing" // refused so fast that connect(2) saw it
	}
	if err != nil {
		return "dial: " + err.Error()
	}
	defer c.Close()                                          //nolint:errcheck // a test
	c.SetDeadline(time.Now().Add(10 * time.Second))          //nolint:errcheck // a test
	fmt.Fprintf(c, "GET /about HTTP/1.1\r\nHost: x\r\n\r\n") //nolint:errcheck // seen by the answer
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "nothing"
	}
	return strings.TrimSpace(line)
}

// as runs a client as the account and gives its first line of output.
func (w *world) as(a accounts.Account, args ...string) string {
	w.t.Helper()
	cmd := a.Command(shared.bin)
	cmd.Env = append(cmd.Env, roleEnv+"=client", "IMT_SOCKET="+w.socket(), "IMT_ARGS="+strings.Join(args, " "))
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("client %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

// background starts a client as the account, waits for its first line and kills it at the end of the test.
func (w *world) background(a accounts.Account, args ...string) string {
	w.t.Helper()
	cmd := a.Command(shared.bin)
	cmd.Env = append(cmd.Env, roleEnv+"=client", "IMT_SOCKET="+w.socket(), "IMT_ARGS="+strings.Join(args, " "))
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	if t, ok := w.t.(*testing.T); ok {
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() }) //nolint:errcheck // a test
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
