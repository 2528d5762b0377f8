package config

import (
	"net/netip"
	"reflect"
	"strings"
	"time"
)

// walkKeys visits every key of a struct type, parents first. Entries of maps are called <name>, items of lists [].
func walkKeys(t reflect.Type, path string, visit func(path string, k *keyInfo)) {
	for _, k := range keysOf(t) {
		sub := join(path, k.key)
		visit(sub, k)
		walkType(k.typ, k, sub, visit)
	}
}

func walkType(t reflect.Type, k *keyInfo, path string, visit func(string, *keyInfo)) {
	if m, ok := reflect.Zero(t).Interface().(anyMap); ok {
		walkType(m.elem(), k, path+".<name>", visit)
		return
	}
	if _, ok := scalarOf(t, k); ok || isLeaf(t) {
		return
	}
	switch t.Kind() {
	case reflect.Pointer:
		walkType(t.Elem(), k, path, visit)
	case reflect.Slice:
		walkType(t.Elem(), k, path+"[]", visit)
	case reflect.Struct:
		walkKeys(t, path, visit)
	}
}

// isLeaf tells whether a struct is one value to the reader of the reference, such as a host.
func isLeaf(t reflect.Type) bool {
	switch t {
	case reflect.TypeFor[Host](), reflect.TypeFor[Endpoint](), reflect.TypeFor[Exec](), reflect.TypeFor[SecretRef](), reflect.TypeFor[Fraction]():
		return true
	}
	return false
}

// typeName is the name of a type in reference text and messages.
func typeName(t reflect.Type, k *keyInfo) string {
	if m, ok := reflect.Zero(t).Interface().(anyMap); ok {
		return "map of " + typeName(m.elem(), k)
	}
	switch reflect.Zero(t).Interface().(type) {
	case time.Duration:
		return "duration"
	case Size:
		return "size"
	case Path:
		return "path"
	case Name:
		return "name"
	case Mode:
		return "octal"
	case Percent:
		return "percent"
	case Money:
		return "money"
	case PortRange, IDRange:
		return "range"
	case Listen:
		return "listen"
	case URL:
		return "url"
	case netip.Prefix:
		return "CIDR"
	case netip.Addr:
		return "IP"
	case Pattern:
		return "pattern"
	case Host:
		return "host"
	case Endpoint:
		return "address"
	case Exec:
		return "exec"
	case SecretRef:
		return "secretRef"
	case Fraction:
		return "fraction"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem(), k)
	case reflect.Slice:
		return "list of " + typeName(t.Elem(), k)
	case reflect.Struct:
		return "map"
	case reflect.Bool:
		return "bool"
	case reflect.Int:
		return "int"
	}
	if k != nil && len(k.enum) > 0 {
		return strings.Join(k.enum, " | ")
	}
	return "text"
}
