package config

import "reflect"

func typeName(t reflect.Type, k *keyInfo) string { return t.String() }
func keyElsewhere(string) string                 { return "" }
