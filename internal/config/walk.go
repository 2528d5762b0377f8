package config

import (
	"fmt"
	"reflect"
)

// visitor is told of every value of a configuration: its key path, what its tags say, and whether it is a leaf, a value
// that is written on one line. Returning false leaves out what is below it.
type visitor func(path string, v reflect.Value, k *keyInfo, leaf bool) bool

// walkValues goes through a struct in the order of its fields, which is the order of the reference.
func walkValues(v reflect.Value, path string, visit visitor) {
	for _, k := range keysOf(v.Type()) {
		walkValue(v.FieldByIndex(k.index), join(path, k.key), k, visit)
	}
}

func walkValue(v reflect.Value, path string, k *keyInfo, visit visitor) {
	if m, ok := v.Interface().(anyMap); ok {
		if visit(path, v, k, false) {
			m.each(func(name string, e reflect.Value) { walkValue(e, path+"."+name, k, visit) })
		}
		return
	}
	if _, ok := scalarOf(v.Type(), k); ok || isLeaf(v.Type()) {
		visit(path, v, k, true)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			visit(path, v, k, true)
			return
		}
		walkValue(v.Elem(), path, k, visit)
	case reflect.Slice:
		if visit(path, v, k, false) {
			for i := range v.Len() {
				walkValue(v.Index(i), fmt.Sprintf("%s[%d]", path, i), k, visit)
			}
		}
	case reflect.Struct:
		if visit(path, v, k, false) {
			walkValues(v, path, visit)
		}
	}
}
