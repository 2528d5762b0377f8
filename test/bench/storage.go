//go:build bench

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/webclient"
)

// bureau is where the storage is measured: the home of one person, whose calls are made as Core makes them. What is
// compared runs as the same account, on the same file system, in turns.
type bureau struct {
	*bench
	w     *world
	p     *person
	tasks int // of the person, that have been looked at
	cpu   map[string][]float64
}

func (b *bench) bureau(w *world) *bureau {
	return &bureau{bench: b, w: w, p: w.people[0], cpu: map[string][]float64{}}
}

func (b *bureau) id(rel string) string    { return "/" + string(b.p.drive.ID) + "/" + rel }
func (b *bureau) local(rel string) string { return filepath.Join(b.p.account.Home, rel) }

func (b *bureau) call(ctx context.Context, method, path string, items []any, answer any) error {
	if err := b.w.core.Call(ctx, b.p.name, method, "/ucloud/"+provider+path, map[string]any{"items": items}, answer); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// endpoint makes a session for an upload or a download.
func (b *bureau) endpoint(ctx context.Context, path string, item map[string]any) (string, error) {
	item["resolvedCollection"] = b.p.drive
	var res struct {
		Responses []struct {
			Endpoint string `json:"endpoint"`
		} `json:"responses"`
	}
	if err := b.call(ctx, http.MethodPost, path, []any{item}, &res); err != nil {
		return "", err
	}
	if len(res.Responses) != 1 {
		return "", fmt.Errorf("%s: %d sessions", path, len(res.Responses))
	}
	return res.Responses[0].Endpoint, nil
}

func (b *bureau) upload(ctx context.Context, rel, kind string, files []webclient.File) error {
	endpoint, err := b.endpoint(ctx, "/files/upload", map[string]any{
		"id": b.id(rel), "type": kind, "supportedProtocols": []string{"WEBSOCKET"}, "conflictPolicy": providerapi.ConflictReplace,
	})
	if err != nil {
		return err
	}
	var c webclient.Client
	res, err := c.Upload(ctx, endpoint, files)
	if err == nil && (res.Completed != len(files) || len(res.Skipped) > 0) {
		err = fmt.Errorf("%d of %d files were completed, %d skipped", res.Completed, len(files), len(res.Skipped))
	}
	return err
}

// ended waits until the next task of the person has ended at Core.
func (b *bureau) ended(ctx context.Context) error {
	var task providerapi.Task
	err := eventually(ctx, "a task to end", b.w.server, func() bool {
		all := b.w.core.Tasks(b.p.name)
		if len(all) <= b.tasks {
			return false
		}
		task = all[b.tasks]
		return devcore.Ended(task)
	})
	b.tasks++
	if err == nil && task.Status.State != providerapi.TaskSuccess {
		why := ""
		if task.Status.Progress != nil {
			why = *task.Status.Progress
		}
		err = fmt.Errorf("a task ended as %s: %s", task.Status.State, why)
	}
	return err
}

// command runs a program as the person.
func (b *bureau) command(ctx context.Context, program string, args ...string) error {
	cmd := command(ctx, program, args...)
	if b.w.site != nil {
		cmd.SysProcAttr.Credential = b.p.account.Credential()
	}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.500s", program, err, out)
	}
	return nil
}

// peak runs something and gives the most memory that the instance has had meanwhile, in MiB.
func (b *bureau) peak(ctx context.Context, run func() error) (float64, error) {
	if err := b.wake(ctx); err != nil {
		return 0, err
	}
	pid, err := b.w.pidOf(ctx, b.p.name)
	if err != nil {
		return 0, err
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) // an ordinary user may not
	err = run()
	return float64(kibibytes(fmt.Sprintf("/proc/%d/status", pid), "VmHWM")) / 1024, err
}

// wake starts the instance if it does not run, so that its start is not measured.
func (b *bureau) wake(ctx context.Context) error {
	return b.w.core.Call(ctx, b.p.name, http.MethodPost, browsePath, b.p.browseOf("", 50, nil), nil)
}

// turns runs two ways of doing the same thing in turns and gives the median of each in seconds. before prepares both.
func (b *bureau) turns(n int, before func() error, ours, theirs func() error) (our, their float64, err error) {
	var a, t []float64
	for range n {
		for _, side := range []struct {
			run func() error
			to  *[]float64
		}{{theirs, &t}, {ours, &a}} {
			if before != nil {
				if err := before(); err != nil {
					return 0, 0, err
				}
			}
			start := time.Now()
			if err := side.run(); err != nil {
				return 0, 0, err
			}
			*side.to = append(*side.to, time.Since(start).Seconds())
		}
	}
	return median(a), median(t), nil
}

// memoryPlace mounts a file system in memory into the home, where only the software is measured and not the disk.
func (b *bureau) memoryPlace() (undo func() error, err error) {
	dir := b.local("memory")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	remove := func() error { return os.Remove(dir) }
	if err := unix.Mount("bench-memory", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700"); err != nil {
		return nil, errors.Join(err, remove())
	}
	if err := os.Chown(dir, int(b.p.account.UID), int(b.p.account.GID)); err != nil {
		return nil, errors.Join(err, unix.Unmount(dir, 0), remove())
	}
	return func() error { return errors.Join(unix.Unmount(dir, unix.MNT_DETACH), remove()) }, nil
}

// sentFile makes a file that the other side sends, in memory if there is room, so that it costs no reading from the disk.
func sentFile(size int64) (name string, undo func() error, err error) {
	dir := "/dev/shm"
	if _, err := os.Stat(dir); err != nil {
		dir = ""
	}
	f, err := os.CreateTemp(dir, "imt-bench-")
	if err != nil {
		return "", nil, err
	}
	undo = func() error { return os.Remove(f.Name()) }
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	for n := int64(0); err == nil && n < size; n += int64(len(block)) {
		_, err = f.Write(block[:min(size-n, int64(len(block)))])
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return "", nil, errors.Join(err, undo())
	}
	return f.Name(), undo, nil
}

// plainCopy is what cp does, with the policy of an upload: a new file under another name, flushed, renamed, and its
// directory flushed.
func plainCopy(from, to string, sync bool) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	// Not in the kernel: the bytes of an upload cannot be shared with their source either.
	_, err = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 256<<10))
	if err == nil && sync {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return err
	}
	if err := os.Rename(to+".new", to); err != nil || !sync {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// forget drops a file from the page cache.
func forget(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

// stream measures one upload and one download of a large file.
func (b *bench) stream(ctx context.Context, w *world) (err error) {
	d := b.bureau(w)
	size := int64(b.amount(1024, 64)) << 20
	b.begin("One upload and one download of %d MiB through gateway and instance", size>>20)
	from, undo, err := sentFile(size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo()) }()
	rate := func(seconds float64) float64 { return float64(size>>20) / seconds }
	places := []struct {
		rel, name string
		disk      bool
		target    *target
	}{{"", "to the disk, flushed", true, atLeast(0.9)}, {"memory/", "to memory", false, nil}}
	undoMemory, err := d.memoryPlace()
	if err != nil {
		b.skip("uploads and downloads in memory", err.Error())
		places = places[:1]
	} else {
		defer func() { err = errors.Join(err, undoMemory()) }()
	}
	to, err := os.CreateTemp(filepath.Dir(from), "imt-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close(), os.Remove(to.Name())) }()
	for _, place := range places {
		rel := place.rel + "ucloud-bench-stream"
		defer os.Remove(d.local(rel)) //nolint:errcheck // may not exist
		file, err := webclient.Disk(from, "")
		if err != nil {
			return err
		}
		var ours, plain float64
		peak, err := d.peak(ctx, func() (err error) {
			ours, plain, err = d.turns(b.amount(3, 1), nil, func() error {
				return d.measured(ctx, func() error { return d.upload(ctx, rel, "FILE", []webclient.File{file}) })
			}, func() error { return plainCopy(from, d.local(rel+"-plain"), place.disk) })
			return err
		})
		if err := errors.Join(err, os.Remove(d.local(rel+"-plain"))); err != nil {
			return err
		}
		b.add("upload "+place.name, rate(ours), "MiB/s", nil)
		b.add("plain copy "+place.name, rate(plain), "MiB/s", nil)
		b.add("upload / plain copy "+place.name, plain/ours, "x", place.target)
		d.addCPU(size)
		b.add("memory of the instance at the peak", peak, "MiB", nil)

		endpoint, err := d.endpoint(ctx, "/files/download", map[string]any{"id": d.id(rel)})
		if err != nil {
			return err
		}
		cold := func() error { return nil }
		from := "from memory"
		if place.disk {
			cold, from = func() error { return forget(d.local(rel)) }, "from the disk"
		}
		peak, err = d.peak(ctx, func() (err error) {
			ours, plain, err = d.turns(b.amount(3, 1), cold, func() error {
				return d.measured(ctx, func() error {
					res, err := webclient.Download(ctx, endpoint, 0)
					if err != nil {
						return err
					}
					defer res.Body.Close()
					return saveTo(to, res.Body, size)
				})
			}, func() error {
				src, err := os.Open(d.local(rel))
				if err != nil {
					return err
				}
				defer src.Close()
				return saveTo(to, src, size)
			})
			return err
		})
		if err != nil {
			return err
		}
		b.add("download "+from, rate(ours), "MiB/s", nil)
		b.add("plain copy "+from, rate(plain), "MiB/s", nil)
		b.add("download / plain copy "+from, plain/ours, "x", place.target)
		d.addCPU(size)
		b.add("memory of the instance at the peak", peak, "MiB", nil)
	}
	return nil
}

// measured runs something and keeps how long the processors worked for it.
func (b *bureau) measured(ctx context.Context, run func() error) error {
	pid, err := b.w.pidOf(ctx, b.p.name)
	if err != nil {
		return err
	}
	pids := map[string]int{"gateway": b.w.gateway.pid(), "instance": pid}
	before := map[string]usage{}
	for name, pid := range pids {
		if before[name], err = usageOf(pid); err != nil {
			return err
		}
	}
	if err := run(); err != nil {
		return err
	}
	for name, pid := range pids {
		after, err := usageOf(pid)
		if err != nil {
			return err
		}
		b.cpu[name] = append(b.cpu[name], after.minus(before[name]).ran.Seconds())
	}
	return nil
}

// addCPU adds what was measured for so many bytes, each time. It depends less than the rest on what else runs.
func (b *bureau) addCPU(size int64) {
	for _, name := range []string{"gateway", "instance"} {
		b.add("CPU of the "+name+" for a GiB", median(b.cpu[name])*float64(1<<30)/float64(size), "s", nil)
	}
	clear(b.cpu)
}

func atLeast(v float64) *target { return &target{Bound: v, AtLeast: true} }

// saveTo is what both sides of a download do with the bytes.
func saveTo(f *os.File, r io.Reader, size int64) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d arrived", n, size)
	}
	return err
}

// smallFiles measures the upload of a folder of many small files.
func (b *bench) smallFiles(ctx context.Context, w *world) (err error) {
	d := b.bureau(w)
	b.begin("Files of 1 KiB uploaded as a folder through gateway and instance")
	content := bytes.Repeat([]byte("small file "), 100)[:1024]
	all := make([]webclient.File, b.amount(20_000, 2000))
	for i := range all {
		all[i] = webclient.File{
			Path: fmt.Sprintf("folder %d/file %d", i/500, i), Size: int64(len(content)), Modified: time.Now().UnixMilli(),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		}
	}
	places := []struct {
		rel, name string
		n         int
		sync      bool
		target    *target
	}{{"", "to the disk, flushed", b.amount(3000, 300), true, nil}, {"memory/", "to memory", len(all), false, atLeast(10_000)}}
	undoMemory, err := d.memoryPlace()
	if err != nil {
		b.skip("small files in memory", err.Error())
		places = places[:1]
	} else {
		defer func() { err = errors.Join(err, undoMemory()) }()
	}
	for _, place := range places {
		rel, files := place.rel+"ucloud-bench-small", all[:place.n]
		remove := func() error {
			return errors.Join(os.RemoveAll(d.local(rel)), os.RemoveAll(d.local(rel+"-plain")))
		}
		var ours, plain float64
		peak, err := d.peak(ctx, func() (err error) {
			ours, plain, err = d.turns(b.amount(3, 1), remove, func() error { return d.upload(ctx, rel, "FOLDER", files) },
				func() error { return d.plainFiles(ctx, rel+"-plain", files, content, place.sync) })
			return err
		})
		if err := errors.Join(err, remove()); err != nil {
			return err
		}
		b.add(fmt.Sprintf("%d small files uploaded %s", place.n, place.name), float64(place.n)/ours, "files/s", place.target)
		b.add("small files written by a plain loop "+place.name, float64(place.n)/plain, "files/s", nil)
		b.add("upload / plain loop "+place.name, plain/ours, "x", nil)
		b.add("memory of the instance at the peak", peak, "MiB", nil)
	}
	return nil
}

// plainFiles writes the same files with one thread and the same policy.
func (b *bureau) plainFiles(ctx context.Context, rel string, files []webclient.File, content []byte, sync bool) error {
	made := map[string]bool{}
	for _, f := range files {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		name := filepath.Join(b.local(rel), f.Path)
		if dir := filepath.Dir(name); !made[dir] {
			made[dir] = true
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
		out, err := os.OpenFile(name+".new", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = out.Write(content)
		if err == nil && sync {
			err = out.Sync()
		}
		at := time.UnixMilli(f.Modified)
		if err := errors.Join(err, out.Close(), os.Chtimes(name+".new", at, at), os.Rename(name+".new", name)); err != nil {
			return err
		}
	}
	return nil
}

// storageParts are the parts of the storage side, in the order in which they run.
func (b *bench) storageParts() []storagePart {
	return []storagePart{
		{"upload and download of a large file", b.stream},
		{"upload of small files", b.smallFiles},
		{"copying and deleting trees", b.trees},
		{"search", b.search},
	}
}

type storagePart struct {
	name string
	run  func(context.Context, *world) error
}
