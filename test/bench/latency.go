//go:build bench

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// loadJob is what the load generator is told. It runs as the service account, because an instance accepts connections
// of that account alone.
type loadJob struct {
	Socket  string // IPC socket of the server, for the key of the route
	User    ident.UCloudUser
	Gateway string
	PID     int    // of the gateway
	Dir     string // private directory for nginx
	Bearer  string // Core's token, for the gateway
	Path    string // of the call
	Body    providerapi.FilesRetrieve

	Rounds, PerRound int           // one client
	ManyRounds       int           // many clients
	ManySpan         time.Duration // of each round
}

// many is the number of clients of the second measurement.
const many = 32

// loadResult is what the load generator has measured, by variant.
type loadResult struct {
	Bytes    int    // of one answer's body
	NoNginx  string // why there is no comparison with nginx
	Variants map[string]*variantResult
}

type variantResult struct {
	One        []time.Duration // one client, all rounds
	RoundP50   []float64       // ms, one client, by round
	Many       []time.Duration // many clients
	ManyPerSec []float64       // requests per second, by round
	// CPU is the time that the proxy itself has used for one request, in microseconds: of one client, and of many. It
	// depends less than the rest on what else runs.
	CPUOne, CPUMany float64
}

// Names of the variants.
const (
	direct     = "direct"
	viaGateway = "gateway"
	viaNginx   = "nginx"
)

// latency measures what the gateway adds to a request for one file: the same request to the instance directly, through
// nginx as a plain proxy, and through the gateway, in turns.
func (b *bench) latency(ctx context.Context, w *world) error {
	p := w.people[0]
	req, err := w.homeRequest(p)
	if err != nil {
		return err
	}
	if err := once(w.gate, req); err != nil { // so that the instance runs
		return err
	}
	result, err := w.runLoad(ctx, loadJob{
		Socket: w.socket(), User: p.name, Gateway: w.gate, PID: w.gateway.pid(), Dir: filepath.Join(w.base, "load"), Bearer: w.core.ServiceToken(),
		Path: retrievePath, Body: p.retrieveOf("/result-07.dat"),
		Rounds: b.amount(60, 5), PerRound: 300, ManyRounds: b.amount(6, 1), ManySpan: time.Second,
	})
	if err != nil {
		return err
	}
	b.begin("Latency added by the gateway, files/retrieve of a real instance, answer of %d bytes", result.Bytes)
	variants := []string{direct, viaNginx, viaGateway}
	if result.NoNginx != "" {
		variants = []string{direct, viaGateway}
		b.skip("comparison with nginx", result.NoNginx)
	}
	for _, name := range variants {
		v := result.Variants[name]
		b.add("1 client, "+name+", p50", quantile(v.One, 0.5), "ms", nil)
		b.add("1 client, "+name+", p99", quantile(v.One, 0.99), "ms", nil)
	}
	// The difference within each round of a tenth of a second, so that a busy moment counts on both sides.
	added := func(name string) float64 {
		var diff []float64
		for i, base := range result.Variants[direct].RoundP50 {
			diff = append(diff, result.Variants[name].RoundP50[i]-base)
		}
		return median(diff)
	}
	gateway := added(viaGateway)
	b.add("1 client, added by the gateway, p50", gateway, "ms", atMost(0.2))
	if result.NoNginx == "" {
		nginx := added(viaNginx)
		b.add("1 client, added by nginx, p50", nginx, "ms", nil)
		b.add("1 client, added by the gateway / added by nginx", gateway/nginx, "x", atMost(2))
	}
	for _, name := range variants {
		v := result.Variants[name]
		b.add(fmt.Sprintf("%d clients, %s", many, name), median(v.ManyPerSec), "1/s", nil)
		b.add(fmt.Sprintf("%d clients, %s, p99", many, name), quantile(v.Many, 0.99), "ms", nil)
	}
	for _, name := range variants[1:] {
		v := result.Variants[name]
		b.add(fmt.Sprintf("1 client, CPU of %s for a request", name), v.CPUOne, "us", nil)
		b.add(fmt.Sprintf("%d clients, CPU of %s for a request", many, name), v.CPUMany, "us", nil)
	}
	perSec := func(name string) float64 { return median(result.Variants[name].ManyPerSec) }
	b.add(fmt.Sprintf("%d clients, gateway / direct", many), perSec(viaGateway)/perSec(direct), "x", nil)
	if result.NoNginx == "" {
		b.add(fmt.Sprintf("%d clients, gateway / nginx", many), perSec(viaGateway)/perSec(viaNginx), "x", nil)
	}
	return nil
}

// retrieveOf asks for one file in the person's home drive.
func (p *person) retrieveOf(rel string) providerapi.FilesRetrieve {
	yes := true
	return providerapi.FilesRetrieve{ResolvedCollection: p.drive, Retrieve: providerapi.RetrieveParams{
		ID: "/" + string(p.drive.ID) + rel, Flags: providerapi.FileFlags{IncludeSizes: &yes, IncludeTimestamps: &yes, IncludeUnixInfo: &yes},
	}}
}

// once sends a request over a connection of its own.
func once(address string, req []byte) error {
	c, err := dial(address)
	if err != nil {
		return err
	}
	defer c.close()
	return c.expectOK(req)
}

// runLoad runs the load generator as the service account.
func (w *world) runLoad(ctx context.Context, job loadJob) (result loadResult, err error) {
	input, err := json.Marshal(job)
	if err != nil {
		return result, err
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, w.self, loadRole)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &errOut
	cmd.SysProcAttr = w.asService()
	// The whole group: nginx is its child.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return result, fmt.Errorf("load generator: %w: %s", err, strings.TrimSpace(errOut.String()))
	}
	return result, json.Unmarshal(out.Bytes(), &result)
}
