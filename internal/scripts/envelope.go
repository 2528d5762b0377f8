package scripts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"ucloud-im/internal/observability"
)

// meta is what every request says about itself (contract 42 section A.2).
type meta struct {
	Hook         string    `json:"hook"`
	InvocationID string    `json:"invocationId"`
	Protocol     int       `json:"protocol"`
	Attempt      int       `json:"attempt"`
	DryRun       bool      `json:"dryRun"`
	Reason       string    `json:"reason"`
	ProviderID   string    `json:"providerId"`
	Time         time.Time `json:"time"`
}

// encodeRequest puts a request into its envelope. request must encode to an object; nil is an empty one.
func encodeRequest(request any, m meta) ([]byte, error) {
	fields := map[string]json.RawMessage{}
	if request != nil {
		raw, err := json.Marshal(request)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
			return nil, fmt.Errorf("a request of type %T is no object", request)
		}
	}
	if m.Protocol == 2 {
		return json.Marshal(struct {
			Meta  meta                       `json:"meta"`
			Input map[string]json.RawMessage `json:"input"`
		}{m, fields})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	fields["_meta"] = raw
	return json.Marshal(fields)
}

// remarks are the fields that every reply may have.
type remarks struct {
	message, userMessage string
	retryAfter           time.Duration
}

// answer is a reply after its envelope was taken off.
type answer struct {
	remarks
	fields  map[string]json.RawMessage
	failure *failureReply // protocol 2: the program says itself that it failed
}

type failureReply struct {
	Code        string `json:"code"`
	Message     string `json:"message"`
	UserMessage string `json:"userMessage"`
	Retryable   bool   `json:"retryable"`
}

var errEmptyReply = errors.New("the reply is empty")

// parseAnswer reads one JSON object. Blank output is errEmptyReply.
func parseAnswer(out []byte, protocol int) (answer, error) {
	if len(bytes.TrimSpace(out)) == 0 {
		return answer{}, errEmptyReply
	}
	if !utf8.Valid(out) {
		return answer{}, errors.New("the reply is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	var a answer
	if err := dec.Decode(&a.fields); err != nil {
		return answer{}, fmt.Errorf("the reply is not a JSON object: %w", err)
	}
	if a.fields == nil {
		return answer{}, errors.New("the reply is null and not an object")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return answer{}, errors.New("something follows the JSON object of the reply")
	}
	if protocol == 2 {
		return unwrap(a)
	}
	a.takeRemarks()
	return a, nil
}

// unwrap takes the envelope of protocol 2 off.
func unwrap(a answer) (answer, error) {
	output, failed := a.fields["output"], a.fields["error"]
	if (len(output) > 0) == (len(failed) > 0) {
		return answer{}, errors.New("a reply of protocol 2 has either output or error")
	}
	if len(failed) > 0 {
		var f failureReply
		if err := json.Unmarshal(failed, &f); err != nil {
			return answer{}, fmt.Errorf("error of the reply: %w", err)
		}
		return answer{failure: &f, remarks: remarks{message: cleanMessage(f.Message), userMessage: cleanMessage(f.UserMessage)}}, nil
	}
	var in answer
	if err := json.Unmarshal(output, &in.fields); err != nil || in.fields == nil {
		return answer{}, errors.New("output of the reply is not a JSON object")
	}
	in.takeRemarks()
	return in, nil
}

// takeRemarks takes the common fields out. They are courtesies: one that has a wrong type is as if it were not there.
func (a *answer) takeRemarks() {
	text := func(name string) string {
		var s string
		_ = json.Unmarshal(a.fields[name], &s)
		delete(a.fields, name)
		return cleanMessage(s)
	}
	a.message, a.userMessage = text("message"), text("userMessage")
	var seconds float64
	_ = json.Unmarshal(a.fields["retryAfterSeconds"], &seconds)
	delete(a.fields, "retryAfterSeconds")
	if seconds > 0 {
		a.retryAfter = time.Duration(min(seconds, 3600) * float64(time.Second))
	}
}

// Checker is implemented by replies that can tell whether they are complete and possible.
type Checker interface {
	// Check explains in words what is wrong with the reply.
	Check() error
}

// remarked is implemented by replies that want to know what the end user is told.
type remarked interface{ remark(userMessage string) }

// decode fills reply, a pointer, and tells which fields it does not know.
func (a answer) decode(reply any) (unknown string, err error) {
	if reply == nil {
		reply = &struct{}{}
	}
	raw, err := json.Marshal(a.fields)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(raw, reply); err != nil {
		return "", fmt.Errorf("the reply does not fit: %w", err)
	}
	if c, ok := reply.(Checker); ok {
		if err := c.Check(); err != nil {
			return "", err
		}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(reply); err != nil {
		unknown = strings.TrimPrefix(err.Error(), "json: ")
	}
	return unknown, nil
}

// redact gives a request as it may be kept: the values of named fields are masked, at any depth. A name counts in any
// case and also at the end of a longer one, so that "password" covers "bindPassword".
func redact(request []byte, names []string) string {
	dec := json.NewDecoder(bytes.NewReader(request))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return observability.Redacted // cannot happen: we made it
	}
	mask(v, names)
	out, err := json.Marshal(v)
	if err != nil {
		return observability.Redacted
	}
	return string(out)
}

func mask(v any, names []string) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if secretName(key, names) {
				v[key] = observability.Redacted
			} else {
				mask(value, names)
			}
		}
	case []any:
		for _, e := range v {
			mask(e, names)
		}
	}
}

func secretName(key string, names []string) bool {
	key = strings.ToLower(key)
	for _, n := range names {
		if n != "" && strings.HasSuffix(key, strings.ToLower(n)) {
			return true
		}
	}
	return false
}
