package ipcapi

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// declaration is a call or stream as it stands in the source.
type declaration struct {
	name, access, files string
}

// declared finds all calls and streams in the package's source, so that none can escape the tests here.
func declared(t *testing.T) []declaration {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var all []declaration
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			typ := types.ExprString(lit.Type)
			if strings.HasPrefix(typ, "ipc.Call[") || strings.HasPrefix(typ, "ipc.Stream[") {
				all = append(all, declare(t, lit))
			}
			return true
		})
	}
	if len(all) < 8 {
		t.Fatalf("found %d calls only", len(all))
	}
	return all
}

func declare(t *testing.T, lit *ast.CompositeLit) declaration {
	t.Helper()
	var d declaration
	for _, elt := range lit.Elts {
		kv, ok := elt.(*ast.KeyValueExpr)
		if !ok {
			t.Fatalf("a call without field names: %s", types.ExprString(lit))
		}
		switch value := types.ExprString(kv.Value); types.ExprString(kv.Key) {
		case "Name":
			name, err := strconv.Unquote(value)
			if err != nil {
				t.Fatalf("the name %s is not a text", value)
			}
			d.name = name
		case "Access":
			d.access = strings.TrimPrefix(value, "ipc.Access")
		case "Files":
			d.files = value
		}
	}
	return d
}

// TestCallsSayWhoMayMakeThem: the server would not start otherwise, but the source is the place to find it first.
func TestCallsSayWhoMayMakeThem(t *testing.T) {
	t.Parallel()
	name := regexp.MustCompile(`^[a-z]+\.[a-z]+$`)
	seen := map[string]bool{}
	for _, d := range declared(t) {
		if !name.MatchString(d.name) || seen[d.name] {
			t.Errorf("the name %q is bad or there twice", d.name)
		}
		seen[d.name] = true
		if !slices.Contains([]string{"Anyone", "Mapped", "Viewer", "Operator", "Service", "Root"}, d.access) {
			t.Errorf("%s: access %q", d.name, d.access)
		}
	}
}

// TestOpenCalls lists what any local user may do. A call that is added here is open to every process on the machine:
// its handler must check the caller itself.
func TestOpenCalls(t *testing.T) {
	t.Parallel()
	open := map[string]string{
		"instance.hello":  "only uids with a pending launch or a registered instance",
		"me.show":         "about the caller alone",
		"service.version": "public",
		"ticket.complete": "the ticket is the secret, the account is the caller's",
		"ticket.describe": "the ticket is the secret",
	}
	for _, d := range declared(t) {
		if _, ok := open[d.name]; d.access == "Anyone" && !ok {
			t.Errorf("%s is open to every local user", d.name)
		}
		delete(open, d.name)
	}
	for name := range open {
		t.Errorf("%s does not exist any more", name)
	}
}

// TestKeysGoToTheGatewayAlone: these hand out or change routes, whose keys make a caller Core.
//
//attack:actor local user
//attack:does Asks the server for the table of routes with their keys.
//attack:control The table with keys is for the service account alone.
//attack:remove internal/ipcapi/gateway.go: Name: "gateway.routes", Access: ipc.AccessService => Name: "gateway.routes", Access: ipc.AccessMapped
func TestKeysGoToTheGatewayAlone(t *testing.T) {
	t.Parallel()
	// As the program has them, beside what the source says below.
	for name, access := range map[string]ipc.Access{
		GatewayRoutes.Name: GatewayRoutes.Access, GatewayAck.Name: GatewayAck.Access, GatewayWake.Name: GatewayWake.Access,
		GatewayToken.Name: GatewayToken.Access, GatewayWeb.Name: GatewayWeb.Access, GatewayWebExchange.Name: GatewayWebExchange.Access,
	} {
		if access != ipc.AccessService {
			t.Errorf("%s: access %s", name, access)
		}
	}
	keys := []string{GatewayRoutes.Name, GatewayAck.Name, GatewayWake.Name, GatewayToken.Name, GatewayWeb.Name, GatewayWebExchange.Name}
	for _, d := range declared(t) {
		if slices.Contains(keys, d.name) != (d.access == "Service") {
			t.Errorf("%s: access %s", d.name, d.access)
		}
	}
}

// TestOnlyHelloTakesDescriptors: every other handler need not expect them.
func TestOnlyHelloTakesDescriptors(t *testing.T) {
	t.Parallel()
	for _, d := range declared(t) {
		want := ""
		if d.name == InstanceHello.Name {
			want = "1" // the listener, on a resume
		}
		if d.files != want {
			t.Errorf("%s takes %q descriptors, want %q", d.name, d.files, want)
		}
	}
}

// TestDocumentsKeepTheirContent encodes and decodes each document with all fields set.
func TestDocumentsKeepTheirContent(t *testing.T) {
	t.Parallel()
	for _, doc := range []any{
		&GatewayHello{}, &RouteUpdate{}, &RouteAck{}, &Wake{}, &WakeReply{}, &TokenQuery{}, &TokenReply{},
		&Hello{}, &InstanceItem{}, &Ready{}, &Idle{}, &IdleReply{}, &Stats{},
	} {
		fill(reflect.ValueOf(doc).Elem())
		raw, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		back := reflect.New(reflect.TypeOf(doc).Elem()).Interface()
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		if err := dec.Decode(back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(doc, back); diff != "" {
			t.Errorf("%T changed (-sent +received):\n%s", doc, diff)
		}
		if strings.Contains(string(raw), ":null") {
			t.Errorf("%T has a field that fill does not know: %s", doc, raw)
		}
	}
}

// fill sets every field to something that is not its zero value.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i))
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("ü<&>")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(1<<31 - 1)
	case reflect.Uint8:
		v.SetUint(200)
	case reflect.Uint32:
		v.SetUint(1<<32 - 1)
	case reflect.Uint64:
		v.SetUint(1<<64 - 1)
	default:
		panic("fill cannot do " + v.Kind().String())
	}
}

// TestRouteTableFits: the whole table travels in one frame of at most 16 MiB.
func TestRouteTableFits(t *testing.T) {
	t.Parallel()
	route := Route{User: ident.UCloudUser(strings.Repeat("<", ident.MaxUserLength))}
	fill(reflect.ValueOf(&route.UID).Elem())
	route.Key = bytes.Repeat([]byte{255}, 32)
	route.Route, route.Generation, route.Port = 1<<63, 1<<63, 60999
	raw, err := json.Marshal(RouteUpdate{Put: []Route{route}})
	if err != nil {
		t.Fatal(err)
	}
	// More instances than there are ports for them would need more than a table.
	if n := 4_000; n*len(raw) > 16<<20 {
		t.Errorf("%d routes of %d bytes do not fit", n, len(raw))
	}
}
