package storetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"ucloud-im/internal/observability"
	"ucloud-im/internal/testkit"
)

// Password of the test server's login. It holds every character that is special in a connection string, so that each
// test on PostgreSQL also proves that such passwords work (contract 40, SEC-7).
const Password observability.Secret = `p@ss:/w?o#r&d=[%41] '"\ $ü`

// postgresServer is a running server.
type postgresServer struct {
	dir  string // data, log and socket
	port int
	user string
	seq  atomic.Int64

	alive *os.File // the supervisor ends the server when this is closed; kept from the garbage collector here
}

// startedServer starts the server of this test binary when it is first needed. One server per process is shared by all
// tests, because starting one takes a second; that is why this is a package variable.
var startedServer = sync.OnceValues(startPostgres)

// ordinaryAccount is the requirement of an account that may run the server: initdb refuses root.
var ordinaryAccount = testkit.Requirement{Name: "an ordinary account for PostgreSQL", Missing: func() error {
	_, err := serverAccount()
	return err
}}

// serverAccount is the account that runs the server: nil for our own, else the credentials to take on.
func serverAccount() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("neither postgres nor nobody exists")
}

// supervisor runs the server until its standard input ends. The other end of that pipe is held by the test binary and
// by nothing else: so the server stops and its files go away however the binary ends, even by SIGKILL.
const supervisor = `
set -u
"$1" -D "$2/data" -k "$2" -p "$3" -h 127.0.0.1 </dev/null >>"$2/log" 2>&1 &
server=$!
read -r ignored
kill -QUIT "$server" 2>/dev/null
wait "$server"
rm -rf "$2"
`

// startPostgres makes a server in a directory of its own. Another process may take the port between its choice and the
// start, then everything is done again.
func startPostgres() (*postgresServer, error) {
	cred, err := serverAccount()
	if err != nil {
		return nil, err
	}
	initdb, err1 := testkit.Program("initdb")
	postgres, err2 := testkit.Program("postgres")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		// Not below the test's temporary directory: the path of a socket may have 107 bytes only.
		dir, err := os.MkdirTemp("/tmp", "imt-pg-")
		if err != nil {
			return nil, err
		}
		s := &postgresServer{dir: dir, user: "imt"}
		if err := s.initialize(initdb, cred); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		if err = s.start(postgres, cred); err == nil {
			return s, nil
		}
		if attempt == 5 || !errors.Is(err, errPortTaken) {
			return nil, err
		}
	}
}

var errPortTaken = errors.New("the port was taken meanwhile")

// initialize makes the data directory. Durability is off: the data are worth nothing, and tests kill clients, not the
// server.
func (s *postgresServer) initialize(initdb string, cred *syscall.Credential) error {
	pw := filepath.Join(s.dir, "pw")
	if err := os.WriteFile(pw, []byte(Password.Reveal()+"\n"), 0o600); err != nil {
		return err
	}
	if cred != nil {
		for _, p := range []string{s.dir, pw} {
			if err := os.Lchown(p, int(cred.Uid), int(cred.Gid)); err != nil {
				return err
			}
		}
	}
	cmd := exec.Command(initdb, "--pgdata", filepath.Join(s.dir, "data"), "--username", s.user, "--pwfile", pw,
		"--auth-host", "scram-sha-256", "--auth-local", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync",
		"--no-instructions")
	s.run(cmd, cred)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	conf, err := os.OpenFile(filepath.Join(s.dir, "data", "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString("\nfsync = off\nfull_page_writes = off\nmax_connections = 200\nshared_buffers = 16MB\n" +
		"max_wal_senders = 0\nwal_level = minimal\nlog_min_messages = fatal\n")
	return errors.Join(err, conf.Close(), os.Remove(pw))
}

// run sets account, directory and environment of a command.
func (s *postgresServer) run(cmd *exec.Cmd, cred *syscall.Credential) {
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "HOME=" + s.dir}
	// Setpgid: the terminal's Ctrl-C is for the tests; the supervisor notices their end by itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setpgid: true}
}

// start runs the server and waits until it answers. When it fails nothing is left of server and directory.
func (s *postgresServer) start(postgres string, cred *syscall.Credential) (err error) {
	if s.port, err = freePort(); err != nil {
		return errors.Join(err, os.RemoveAll(s.dir))
	}
	cmd := exec.Command("/bin/sh", "-c", supervisor, "sh", postgres, s.dir, strconv.Itoa(s.port))
	s.run(cmd, cred)
	r, w, err := os.Pipe() // both ends are closed in other children
	if err != nil {
		return errors.Join(err, os.RemoveAll(s.dir))
	}
	cmd.Stdin = r
	err = cmd.Start()
	if err = errors.Join(err, r.Close()); err != nil {
		return errors.Join(err, w.Close(), os.RemoveAll(s.dir))
	}
	s.alive = w
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	for {
		c, err := s.connect(ctx)
		if err == nil {
			return c.Close(ctx)
		}
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		if strings.Contains(string(log), "could not create any TCP/IP sockets") {
			err = errors.Join(errPortTaken, err)
		} else if ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		return errors.Join(fmt.Errorf("%w\n%s", err, log), w.Close(), cmd.Wait())
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// connect opens an administrator's connection over the Unix socket.
func (s *postgresServer) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig("host=localhost user=x dbname=x sslmode=disable")
	if err != nil {
		return nil, err
	}
	cfg.Host, cfg.Port, cfg.User, cfg.Database, cfg.Fallbacks = s.dir, uint16(s.port), s.user, "postgres", nil
	return pgx.ConnectConfig(ctx, cfg)
}

func (s *postgresServer) admin(ctx context.Context, statement string) error {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, statement)
	return errors.Join(err, c.Close(ctx))
}

func (s *postgresServer) createDatabase(ctx context.Context) (string, error) {
	name := fmt.Sprintf("test_%d", s.seq.Add(1))
	return name, s.admin(ctx, "CREATE DATABASE "+name)
}

func (s *postgresServer) dropDatabase(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return s.admin(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
}
