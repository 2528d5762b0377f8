package terminal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// HolderEnv marks a process that is to hold a terminal. It is no secret and grants nothing: whoever starts one gets a
// shell that they had already.
const HolderEnv = "UCLOUD_USER_TERMINAL"

// The values of HolderEnv. The first process ends at once, so that the second is nobody's child but init's.
const (
	holderFirst  = "1"
	holderSecond = "2"
)

// order is what a holder is to do; it comes on standard input.
type order struct {
	Socket string   `json:"socket"`
	Key    string   `json:"key"`
	Path   string   `json:"path"`
	Args   []string `json:"args"` // with the name of the program
	Env    []string `json:"env"`
	Cols   uint16   `json:"cols"`
	Rows   uint16   `json:"rows"`

	// Relay is a program that brings a shell from elsewhere and has to pass the size on.
	Relay bool `json:"relay,omitempty"`

	DetachMs int64 `json:"detachMs"` // how long nobody may be attached; 0: it ends with the connection
	IdleMs   int64 `json:"idleMs"`   // how long there may be neither input nor output; 0: any time
	MaxMs    int64 `json:"maxMs"`    // how long it may be at all; 0: any time
}

const (
	// maxOrder bounds an order in bytes.
	maxOrder = 1 << 20
	// firstAttach is how long the first connection may take.
	firstAttach = 20 * time.Second
	// askPatience is how long a connection may take to say what it wants.
	askPatience = 5 * time.Second
	// maxAsking bounds connections that have not attached.
	maxAsking = 16
	// readBytes is how much is read from the shell at a time.
	readBytes = 16 << 10
	// liveWindow is how much output may wait for the connection before the shell has to.
	liveWindow = 64 << 10
	// inputPatience is how long input waits for a shell that does not read. Then it is dropped, as terminals do.
	inputPatience = 3 * time.Second
	// hangUp is how long the shell has to end after SIGHUP.
	hangUp = 3 * time.Second
	// lastWords is how long output may come after the shell has ended, from what it has left behind.
	lastWords = 200 * time.Millisecond
	// flushPatience is how long the connection may take to accept the last output.
	flushPatience = 5 * time.Second
)

// ready is what a holder writes to standard output when its shell runs. Anything else is why it does not.
const ready = "ready"

// RunHolder is the life of a holder. The result is the exit code. mode is the value of [HolderEnv].
func RunHolder(mode string) int {
	// The two processes of a holder and the shell have one thing to do at a time.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(50)
	var err error
	if mode == holderFirst {
		err = again()
	} else {
		err = hold()
	}
	if err != nil {
		fmt.Fprintln(os.Stdout, err) //nolint:errcheck // nobody else to tell
		return 1
	}
	return 0
}

// again runs the program once more and ends, so that nobody has to wait for the holder.
func again() error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"ucloud-terminal"}
	cmd.Env = []string{HolderEnv + "=" + holderSecond}
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the holder: %w", err)
	}
	return cmd.Process.Release()
}

// holder is a shell with its terminal.
type holder struct {
	o     order
	own   uint32
	lis   *net.UnixListener
	tty   *os.File // the side of the pseudo-terminal that is not the shell's
	cmd   *exec.Cmd
	input chan []byte
	deaf  bool // input was dropped, and there is no room yet; of whoever is attached

	exited  chan struct{} // the shell has ended
	drained chan struct{} // nothing more comes from the terminal
	over    chan struct{} // the holder ends
	recount chan struct{} // a limit may be due earlier than it was

	mu      sync.Mutex // guards the fields below
	changed sync.Cond
	out     ring
	conn    *net.UnixConn // nil while nobody is attached
	pos     int64         // of the connection in out
	left    time.Time     // since when nobody is attached
	used    time.Time     // the last input or output
	started time.Time
	size    size
	again   *time.Timer // tells of the size once more
	closed  bool        // the connection must not be replaced any more
}

func hold() error {
	raw, err := io.ReadAll(io.LimitReader(os.Stdin, maxOrder))
	if err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	h := &holder{
		own: uint32(os.Getuid()), input: make(chan []byte, 64), //nolint:gosec // uids fit
		exited: make(chan struct{}), drained: make(chan struct{}), over: make(chan struct{}),
		recount: make(chan struct{}, 1),
	}
	h.changed.L = &h.mu
	if err := json.Unmarshal(raw, &h.o); err != nil || len(h.o.Args) == 0 || h.o.Socket == "" {
		return errors.New("the order is not complete")
	}
	addr := &net.UnixAddr{Name: h.o.Socket, Net: "unix"}
	if h.lis, err = net.ListenUnix("unix", addr); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := h.start(); err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString(ready + "\n"); err != nil {
		h.kill(unix.SIGKILL)
		return err
	}
	debug.FreeOSMemory() // of what packages have made at the start and holders do not need
	// Nothing of what started us is held any longer.
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		for std := range 3 {
			unix.Dup3(int(null.Fd()), std, 0) //nolint:errcheck // the old ones stay
		}
		null.Close() //nolint:errcheck // duplicates are in place
	}
	h.run()
	return nil
}

// start starts the shell in a session of its own, with the terminal as its controlling one.
func (h *holder) start() error {
	h.cmd = &exec.Cmd{Path: h.o.Path, Args: h.o.Args, Env: h.o.Env}
	h.size = sizeOf(int(h.o.Cols), int(h.o.Rows))
	var err error
	if h.tty, err = startOnTerminal(h.cmd, h.size); err != nil {
		return fmt.Errorf("start %s: %w", h.o.Path, err)
	}
	h.started = time.Now()
	h.used, h.left = h.started, h.started
	return nil
}

// run serves until the shell has ended.
func (h *holder) run() {
	var all sync.WaitGroup
	all.Go(h.accept)
	all.Go(h.output)
	all.Go(h.feed)
	all.Go(h.limits)
	h.cmd.Wait() //nolint:errcheck // however it ended
	close(h.exited)
	h.finish()
	close(h.over)
	h.lis.Close() //nolint:errcheck // it wakes accept
	h.tty.Close() //nolint:errcheck // it hangs up on what is left
	all.Wait()
}

// finish lets the connection have what is left.
func (h *holder) finish() {
	h.tty.SetReadDeadline(past()) //nolint:errcheck // output waits a little longer by itself
	limit := time.AfterFunc(flushPatience, func() { h.drop(nil) })
	defer limit.Stop()
	<-h.drained
	h.mu.Lock()
	for h.conn != nil && h.pos < h.out.written {
		h.changed.Wait()
	}
	conn := h.conn
	h.closed = true
	h.mu.Unlock()
	if conn != nil {
		conn.SetWriteDeadline(time.Now().Add(flushPatience)) //nolint:errcheck // it is to end
		conn.Write(appendFrame(nil, kindEnd, nil))           //nolint:errcheck // nobody else to tell
	}
	h.drop(nil)
}

// output reads what the shell writes, and what it has left in the terminal when it has ended.
func (h *holder) output() {
	defer close(h.drained)
	buf := make([]byte, readBytes)
	var stop time.Time // after the end of the shell: when no more is read
	for {
		n, err := h.tty.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && stop.IsZero() {
			stop, err = time.Now().Add(flushPatience), nil
		}
		h.mu.Lock()
		if n > 0 {
			h.out.add(buf[:n])
			h.used = time.Now()
			h.changed.Broadcast()
		}
		for err == nil && h.conn != nil && h.out.written-h.pos > liveWindow {
			h.changed.Wait() // the connection is slow, so the shell is
		}
		h.mu.Unlock()
		if !stop.IsZero() {
			now := time.Now()
			if now.After(stop) {
				return
			}
			h.tty.SetReadDeadline(now.Add(lastWords)) //nolint:errcheck // a terminal has deadlines
		}
		if err != nil {
			return
		}
	}
}

// feed writes input to the shell.
func (h *holder) feed() {
	for {
		select {
		case p := <-h.input:
			h.tty.Write(p) //nolint:errcheck // the shell has ended
		case <-h.over:
			return
		}
	}
}

// accept takes connections of our own account.
func (h *holder) accept() {
	var all sync.WaitGroup
	defer all.Wait()
	asking := make(chan struct{}, maxAsking)
	for {
		c, err := h.lis.AcceptUnix()
		if err != nil {
			select {
			case <-h.over:
				return
			case <-time.After(100 * time.Millisecond): // out of descriptors
				continue
			}
		}
		if uid, err := peerUID(c); err != nil || uid != h.own {
			c.Close() //nolint:errcheck // not ours
			continue
		}
		select {
		case asking <- struct{}{}:
			all.Go(func() { h.serve(c, func() { <-asking }) })
		default:
			c.Close() //nolint:errcheck // too many
		}
	}
}

// serve answers one connection. settled gives its place among those that ask back.
func (h *holder) serve(c *net.UnixConn, settled func()) {
	settled = sync.OnceFunc(settled)
	defer settled()
	defer c.Close()                                      //nolint:errcheck // it has ended
	c.SetDeadline(time.Now().Add(askPatience))           //nolint:errcheck // a socket has deadlines
	c.SetWriteBuffer(maxFrame)                           //nolint:errcheck // it only makes the shell notice sooner
	stop := h.whenOver(func() { c.SetDeadline(past()) }) //nolint:errcheck // likewise
	defer stop()
	buf := make([]byte, maxFrame)
	for {
		kind, p, err := readFrame(c, buf)
		if err != nil {
			return
		}
		switch kind {
		case kindQuery:
			doc, _ := json.Marshal(h.state()) // cannot fail
			if _, err := c.Write(appendFrame(nil, kindState, doc)); err != nil {
				return
			}
		case kindKill:
			h.terminate()
			return
		case kindAttach:
			z, err := parseSize(p)
			if err != nil {
				return
			}
			if !h.attach(c) {
				c.Write(appendFrame(nil, kindBusy, nil)) //nolint:errcheck // it ends anyway
				return
			}
			settled()
			h.attached(c, z, buf)
			return
		default:
			return
		}
	}
}

func past() time.Time { return time.Unix(1, 0) }

// whenOver calls f when the holder ends, unless stop is called before.
func (h *holder) whenOver(f func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-h.over:
			f()
		case <-done:
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

func (h *holder) state() state {
	h.mu.Lock()
	defer h.mu.Unlock()
	return state{Key: h.o.Key, Attached: h.conn != nil || h.closed, Started: h.started.UnixMilli(), Left: h.left.UnixMilli()}
}

// attach makes c the connection, unless there is one.
func (h *holder) attach(c *net.UnixConn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn != nil || h.closed {
		return false
	}
	h.conn, h.pos = c, h.out.replay()
	h.used = time.Now()
	return true
}

// drop lets go of the connection; nil means whichever it is.
func (h *holder) drop(c *net.UnixConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == nil || c != nil && h.conn != c {
		return
	}
	h.conn.Close() //nolint:errcheck // it has ended
	h.conn, h.left = nil, time.Now()
	h.changed.Broadcast()
	select {
	case h.recount <- struct{}{}:
	default:
	}
}

// attached serves the connection of a terminal until it ends.
func (h *holder) attached(c *net.UnixConn, z size, buf []byte) {
	defer h.lost()
	defer h.drop(c)
	c.SetDeadline(time.Time{}) //nolint:errcheck // as above
	if _, err := c.Write(appendFrame(nil, kindTaken, nil)); err != nil {
		return
	}
	h.resize(z, true)
	var writing sync.WaitGroup
	defer writing.Wait()
	defer h.drop(c) // ends the writer
	writing.Go(func() { h.write(c) })
	for {
		kind, p, err := readFrame(c, buf)
		if err != nil {
			return
		}
		switch kind {
		case kindInput:
			h.take(append([]byte(nil), p...))
		case kindResize:
			z, err := parseSize(p)
			if err != nil {
				return
			}
			h.resize(z, false)
		case kindKill:
			h.terminate()
		}
	}
}

// take puts input into the queue. A shell that does not read it cannot stop us for long, and not again and again.
func (h *holder) take(p []byte) {
	h.mu.Lock()
	h.used = time.Now()
	h.mu.Unlock()
	select {
	case h.input <- p:
		h.deaf = false
		return
	default:
		if h.deaf {
			return
		}
	}
	t := time.NewTimer(inputPatience)
	defer t.Stop()
	select {
	case h.input <- p:
	case <-t.C:
		h.deaf = true
	case <-h.over:
	}
}

// write sends output while c is the connection.
func (h *holder) write(c *net.UnixConn) {
	frame := make([]byte, headBytes+maxFrame)
	for {
		h.mu.Lock()
		for h.conn == c && h.pos == h.out.written {
			h.changed.Wait()
		}
		if h.conn != c {
			h.mu.Unlock()
			return
		}
		n := h.out.from(h.pos, frame[headBytes:])
		h.mu.Unlock()
		appendFrame(frame[:0], kindData, frame[headBytes:headBytes+n])
		if _, err := c.Write(frame[:headBytes+n]); err != nil {
			h.drop(c)
			return
		}
		h.mu.Lock()
		h.pos += int64(n)
		h.changed.Broadcast()
		h.mu.Unlock()
	}
}

// resize sets the size of the terminal. With redraw the programs in it are told also if it is the same: whoever comes
// back wants to see the whole screen.
func (h *holder) resize(z size, redraw bool) {
	h.mu.Lock()
	same := h.size == z
	h.size = z
	h.mu.Unlock()
	if !same {
		setSize(h.tty, z) //nolint:errcheck // the shell has ended
		if h.o.Relay {
			h.tellAgain()
		}
		return
	}
	if redraw {
		h.tellSize()
	}
}

// tellSize has the programs in the terminal look at its size.
func (h *holder) tellSize() {
	if group := foregroundOf(h.tty); group > 1 {
		unix.Kill(-group, unix.SIGWINCH) //nolint:errcheck // it may be gone
	}
}

// sizeAgain is how long after a change of the size it is told once more, and sizeTimes how often, each time after twice as long.
const (
	sizeAgain = 300 * time.Millisecond
	sizeTimes = 5
)

// tellAgain tells of the size a few times more: srun forgets a change that comes while its connection to the node is made, and
// then the shell would keep the old size for ever.
func (h *holder) tellAgain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.again != nil {
		h.again.Stop()
	}
	pause, left := sizeAgain, sizeTimes
	var t *time.Timer
	t = time.AfterFunc(pause, func() {
		h.tellSize()
		h.mu.Lock()
		defer h.mu.Unlock()
		if left--; left > 0 && h.again == t {
			pause *= 2
			t.Reset(pause)
		}
	})
	h.again = t
}
