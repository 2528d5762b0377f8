package yamlnode

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"ucloud-im/internal/failure"
)

// Object takes the entries of a map one by one. The first problem is kept, and so a reader asks [Object.Err] once, at the end.
type Object struct {
	node *Node
	seen []string
	err  *error
}

// Object reads a node as a map. Null is an empty one.
func (n *Node) Object() *Object {
	var err error
	return n.object(&err)
}

func (n *Node) object(err *error) *Object {
	if n == nil {
		n = &Node{}
	}
	o := &Object{node: n, err: err}
	if n.Kind != Map && n.Kind != Null {
		o.fail(n.Line, "a map is expected")
	}
	return o
}

func (o *Object) fail(line int, format string, args ...any) {
	if *o.err == nil {
		*o.err = failure.New(failure.Invalid, "Line %d: "+format, append([]any{line}, args...)...)
	}
}

// Fail reports a problem with the whole object.
func (o *Object) Fail(format string, args ...any) { o.fail(o.node.Line, format, args...) }

// Line is where the object stands.
func (o *Object) Line() int { return o.node.Line }

// Err is the first problem, or an entry that nobody has asked for.
func (o *Object) Err() error {
	if *o.err != nil {
		return *o.err
	}
	for _, f := range o.node.Fields {
		if !slices.Contains(o.seen, f.Key) {
			return failure.New(failure.Invalid, "Line %d: the key %q is not known here", f.Line, f.Key)
		}
	}
	return nil
}

// Child is the value of a key; ok tells whether it is there and not null.
func (o *Object) Child(key string) (value *Node, ok bool) {
	o.seen = append(o.seen, key)
	for _, f := range o.node.Fields {
		if f.Key == key && f.Value.Kind != Null {
			return f.Value, true
		}
	}
	return nil, false
}

// Keys are the keys in their order.
func (o *Object) Keys() []string {
	keys := make([]string, len(o.node.Fields))
	for i, f := range o.node.Fields {
		keys[i] = f.Key
	}
	return keys
}

// Text is a scalar as text, "" if there is none.
func (o *Object) Text(key string) string {
	v, ok := o.Child(key)
	if !ok {
		return ""
	}
	if v.Kind == Map || v.Kind == List {
		o.fail(v.Line, "%s must be text", key)
		return ""
	}
	return v.Text
}

// Required is a text that must be there.
func (o *Object) Required(key string) string {
	s := o.Text(key)
	if s == "" {
		o.Fail("%s is missing", key)
	}
	return s
}

// Bool is true or false.
func (o *Object) Bool(key string, otherwise bool) bool {
	v, ok := o.Child(key)
	if !ok {
		return otherwise
	}
	if v.Kind != Bool {
		o.fail(v.Line, "%s must be true or false", key)
	}
	return strings.EqualFold(v.Text, "true")
}

// Int is a whole number between limits.
func (o *Object) Int(key string, otherwise, low, high int) int {
	v, ok := o.Child(key)
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(v.Text)
	if err != nil || n < low || n > high {
		o.fail(v.Line, "%s must be a number between %d and %d", key, low, high)
	}
	return n
}

// Texts is a list of texts.
func (o *Object) Texts(key string) []string {
	v, ok := o.Child(key)
	if !ok {
		return nil
	}
	if v.Kind != List {
		o.fail(v.Line, "%s must be a list", key)
		return nil
	}
	var list []string
	for _, item := range v.Items {
		if item.Kind == Map || item.Kind == List || item.Kind == Null {
			o.fail(item.Line, "%s must be a list of texts", key)
			return nil
		}
		list = append(list, item.Text)
	}
	return list
}

// Objects is a list of maps.
func (o *Object) Objects(key string, each func(*Object)) {
	v, ok := o.Child(key)
	if !ok {
		return
	}
	if v.Kind != List {
		o.fail(v.Line, "%s must be a list", key)
		return
	}
	for _, item := range v.Items {
		o.sub(item, each)
	}
}

// Object is a map within; each is not called if it is not there.
func (o *Object) Object(key string, each func(*Object)) {
	if v, ok := o.Child(key); ok {
		o.sub(v, each)
	}
}

func (o *Object) sub(n *Node, each func(*Object)) {
	inner := n.object(o.err)
	if *o.err != nil {
		return
	}
	each(inner)
	if err := inner.Err(); err != nil && *o.err == nil {
		*o.err = err
	}
}

// JSON is a scalar as JSON, with all digits of a number; nil if there is none.
func (o *Object) JSON(key string) json.RawMessage {
	v, ok := o.Child(key)
	if !ok {
		return nil
	}
	switch v.Kind {
	case Bool:
		return json.RawMessage(strings.ToLower(v.Text))
	case Int, Float:
		if n := json.Number(v.Text); json.Valid([]byte(n)) {
			return json.RawMessage(n)
		}
	case Map, List:
		o.fail(v.Line, "%s must be a single value", key)
		return nil
	}
	b, err := json.Marshal(v.Text)
	if err != nil {
		o.fail(v.Line, "%s cannot be read", key)
	}
	return b
}

// Number is a number as it was written, nil if there is none.
func (o *Object) Number(key string) *json.Number {
	v, ok := o.Child(key)
	if !ok {
		return nil
	}
	n := json.Number(v.Text)
	if v.Kind != Int && v.Kind != Float || !json.Valid([]byte(n)) {
		o.fail(v.Line, "%s must be a number", key)
	}
	return &n
}
