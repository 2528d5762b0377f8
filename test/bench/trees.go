//go:build bench

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/providerapi"
)

// trees measures copying and deleting trees of many files, wide and deep ones.
func (b *bench) trees(ctx context.Context, w *world) (err error) {
	d := b.bureau(w)
	d.tasks = len(w.core.Tasks(d.p.name))
	wide, deep := b.amount(30_000, 3000), b.amount(200, 100)
	b.begin("A tree of %d files in folders of 100, and one of %d levels: copied and deleted", wide, deep)
	const source, copied, plain = "ucloud-bench-tree", "ucloud-bench-copy", "ucloud-bench-plain"
	defer func() {
		for _, rel := range []string{source, copied, plain} {
			err = errors.Join(err, exec.Command("rm", "-rf", d.local(rel)).Run()) // any depth
		}
	}()
	b.progress("making the tree")
	if err := makeTree(d.local(source), wide, deep); err != nil {
		return err
	}
	if w.site != nil {
		if err := exec.Command("chown", "-R", fmt.Sprintf("%d:%d", d.p.account.UID, d.p.account.GID), d.local(source)).Run(); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	cp := func(to string) error {
		// Copies are on the disk when their task has ended.
		return errors.Join(d.command(ctx, "cp", "-a", d.local(source), d.local(to)), d.command(ctx, "sync", "-f", d.local(to)))
	}
	rounds := b.amount(3, 1)
	var copying, cpTime, deleting, rmTime []float64
	var peakCopy, peakDelete float64
	timed := func(to *[]float64, run func() error) error {
		start := time.Now()
		err := run()
		*to = append(*to, time.Since(start).Seconds())
		return err
	}
	for range rounds {
		if err := timed(&cpTime, func() error { return cp(plain) }); err != nil {
			return err
		}
		peak, err := d.peak(ctx, func() error {
			return timed(&copying, func() error {
				move := providerapi.MoveFile{
					ResolvedOldCollection: d.p.drive, ResolvedNewCollection: d.p.drive, OldID: d.id(source), NewID: d.id(copied), ConflictPolicy: providerapi.ConflictReject,
				}
				return errors.Join(d.call(ctx, http.MethodPost, "/files/copy", []any{move}, nil), d.ended(ctx))
			})
		})
		if err != nil {
			return err
		}
		peakCopy = max(peakCopy, peak)
		if err := timed(&rmTime, func() error { return d.command(ctx, "rm", "-rf", d.local(plain)) }); err != nil {
			return err
		}
		peak, err = d.peak(ctx, func() error {
			return timed(&deleting, func() error {
				item := map[string]any{
					"id": d.id(copied), "permissions": d.p.drive.Permissions,
					"specification": map[string]any{"collection": d.p.drive.ID, "product": d.p.drive.Specification.Product},
				}
				return errors.Join(d.call(ctx, http.MethodDelete, "/files", []any{item}, nil), d.ended(ctx))
			})
		})
		if err != nil {
			return err
		}
		peakDelete = max(peakDelete, peak)
	}
	b.add("copy, until Core knows its end", median(copying), "s", nil)
	b.add("cp -a, and sync -f", median(cpTime), "s", nil)
	b.add("copy / cp -a", median(copying)/median(cpTime), "x", nil)
	b.add("memory of the instance at the peak", peakCopy, "MiB", nil)
	b.add("delete, until Core knows its end", median(deleting), "s", nil)
	b.add("rm -rf", median(rmTime), "s", nil)
	b.add("delete / rm -rf", median(deleting)/median(rmTime), "x", nil)
	b.add("memory of the instance at the peak", peakDelete, "MiB", nil)
	return nil
}

// makeTree makes folders of 100 small files each, and a chain of folders with a file on each level. cp cannot copy one
// whose paths are longer than 4,096 bytes.
func makeTree(top string, files, levels int) error {
	content := bytes.Repeat([]byte("content "), 128)
	for i := range files {
		dir := filepath.Join(top, fmt.Sprintf("group %d", i/10_000), fmt.Sprintf("folder %d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(dir, 0o750); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("result %d.dat", i)), content[:i%len(content)], 0o640); err != nil {
			return err
		}
	}
	// By descriptors: the path gets too long.
	dir, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i := 0; err == nil && i < levels; i++ {
		var fd, next int
		if fd, err = unix.Openat(dir, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o640); err == nil {
			err = unix.Close(fd)
		}
		if err == nil {
			err = unix.Mkdirat(dir, "one level deeper", 0o750)
		}
		if err == nil {
			next, err = unix.Openat(dir, "one level deeper", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		if err == nil {
			err = unix.Close(dir)
			dir = next
		}
	}
	if err != nil {
		return fmt.Errorf("make a deep tree: %w", err)
	}
	return unix.Close(dir)
}

// search measures the streaming search through gateway and instance.
func (b *bench) search(ctx context.Context, w *world) (err error) {
	d := b.bureau(w)
	files := b.amount(200_000, 5000)
	b.begin("Search in %d files in folders of 100 through gateway and instance", files)
	const top = "ucloud-bench-search"
	defer func() { err = errors.Join(err, os.RemoveAll(d.local(top))) }()
	b.progress("making the tree")
	if err := makeTree(d.local(top), files, 1); err != nil {
		return err
	}
	if w.site != nil {
		if err := exec.Command("chown", "-R", fmt.Sprintf("%d:%d", d.p.account.UID, d.p.account.GID), d.local(top)).Run(); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	const needle = "777"
	var ours, theirs int
	var our, find float64
	peak, err := d.peak(ctx, func() (err error) {
		our, find, err = d.turns(b.amount(5, 1), nil, func() (err error) { ours, err = d.find(ctx, top, needle); return err }, func() error {
			cmd := command(ctx, "find", d.local(top), "-iname", "*"+needle+"*")
			if w.site != nil {
				cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: d.p.account.Credential()}
			}
			cmd.Dir = "/"
			out, err := cmd.Output()
			theirs = bytes.Count(out, []byte("\n"))
			return err
		})
		return err
	})
	if err != nil {
		return err
	}
	if ours != theirs || ours == 0 {
		return fmt.Errorf("the search finds %d files and find %d", ours, theirs)
	}
	b.add("search", our*1000, "ms", nil)
	b.add("find -iname", find*1000, "ms", nil)
	b.add("search / find", our/find, "x", nil)
	b.add("memory of the instance at the peak", peak, "MiB", nil)
	return nil
}

// find searches as Core does (contract 13 section 3.1) and gives the number of results.
func (b *bureau) find(ctx context.Context, rel, query string) (n int, err error) {
	ws, _, err := websocket.Dial(ctx, "ws://"+b.w.gate+"/ucloud/"+provider+"/files?usernameHint="+b.p.name.HintValue(), &websocket.DialOptions{
		HTTPHeader: http.Header{"Authorization": {"Bearer " + b.w.core.ServiceToken()}},
	})
	if err != nil {
		return 0, fmt.Errorf("search: %w", err)
	}
	defer ws.CloseNow() //nolint:errcheck // it is over
	ws.SetReadLimit(16 << 20)
	init := fmt.Sprintf(`{"call":"files.provider.%s.streamingSearch","streamId":"ignored","bearer":"","project":null,"payload":{"query":%q,"owner":{"createdBy":%q,"project":null},"flags":{},"category":{"name":%q,"provider":%q},"currentFolder":%q}}`,
		provider, query, string(b.p.name), category, provider, b.id(rel))
	if err := ws.Write(ctx, websocket.MessageText, []byte(init)); err != nil {
		return 0, fmt.Errorf("search: %w", err)
	}
	for {
		_, msg, err := ws.Read(ctx)
		if err != nil {
			return n, fmt.Errorf("search ends without the last message: %w", err)
		}
		// No full decoding: it would cost more than what is measured.
		text := string(msg)
		n += strings.Count(text, `"unixMode":`)
		if strings.Contains(text[:min(len(text), 200)], "end_of_results") {
			return n, nil
		}
	}
}
