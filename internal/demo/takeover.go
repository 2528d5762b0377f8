package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"ucloud-im/internal/devcore"
)

// Attacker uses the simulated Core of a demo that runs with [Options.TakenOver], as somebody who has taken it over.
type Attacker struct {
	Console string // the address of the console, with the key, as the demo prints it
	Out     io.Writer
}

// Captured lists the calls of users that the Core has seen.
func (a Attacker) Captured(ctx context.Context) error {
	var list []devcore.Captured
	if err := a.call(ctx, http.MethodGet, "/api/dev/captured", nil, &list); err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tTIME\tUSER\tCALL\tSIGNED")
	for _, c := range list {
		signed := "no"
		if len(c.Intents) > 0 {
			signed = "yes"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s %s\t%s\n", c.ID, c.At.Local().Format(time.TimeOnly), c.User, c.Method, c.Path, signed)
	}
	return w.Flush()
}

// Forge sends a forged request and prints the provider's answer.
func (a Attacker) Forge(ctx context.Context, f devcore.Forgery) error {
	var res devcore.Forged
	if err := a.call(ctx, http.MethodPost, "/api/dev/forge", f, &res); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.Out, "%d\n%s\n", res.Status, res.Body)
	return err
}

func (a Attacker) call(ctx context.Context, method, path string, body, answer any) error {
	u, err := url.Parse(a.Console)
	if err != nil {
		return fmt.Errorf("the address of the console: %w", err)
	}
	key, err := url.ParseQuery(u.Fragment)
	if err != nil || u.Host == "" || key.Get("key") == "" {
		return errors.New("--console must be the address that the demo prints, with the key")
	}
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, u.Scheme+"://"+u.Host+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("X-Dev-Key", key.Get("key"))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if data, err = io.ReadAll(res.Body); err != nil {
		return err
	}
	switch res.StatusCode {
	case http.StatusOK:
		return json.Unmarshal(data, answer)
	case http.StatusNotFound:
		return errors.New("this demo has no Core in wrong hands; start it with --taken-over")
	default:
		e := devcore.CallError{}
		_ = json.Unmarshal(data, &e) // a body that is not JSON has no text
		return fmt.Errorf("%d %s", res.StatusCode, e.Why)
	}
}
