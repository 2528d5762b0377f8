package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Reference is the reference documentation of all keys in Markdown, made from the same tags as parser and schema.
// docs/configuration.md is this text; TestReferenceIsFresh -update writes it.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	section := func(title, file string, t reflect.Type, keep func(top string) bool) {
		fmt.Fprintf(&b, "\n## %s\n\n", title)
		if file != "" {
			fmt.Fprintf(&b, "File `%s`.\n\n", file)
		}
		b.WriteString("| Key | Type | Default | Meaning |\n|---|---|---|---|\n")
		walkKeys(t, "", func(path string, k *keyInfo) {
			top, _, _ := strings.Cut(path, ".")
			if keep(top) && !isSection(k) {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", path, cell(k.typeCell()), cell(k.defaultCell()), cell(k.meaning()))
			}
		})
	}
	in := func(names ...string) func(string) bool {
		return func(top string) bool {
			for _, n := range names {
				if n == top {
					return true
				}
			}
			return false
		}
	}
	section("Provider", "config.yml", configType, in("version", "provider"))
	section("Gateway and networking", "config.yml", configType, in("gateway", "internal", "metrics", "health", "profiler"))
	section("Runtime", "config.yml", configType, in("stateDirectory", "ipc", "logs", "audit", "database", "retention", "cli", "development"))
	section("User instances", "config.yml", configType, in("userInstances", "terminal", "files", "tasks", "transfers"))
	section("Extension scripts", "config.yml", configType, in("scripts", "hooks"))
	section("Services", "config.yml", configType, in("services"))
	section("Login of server and database", "server.yml", reflect.TypeFor[ServerFile](), func(string) bool { return true })
	section("Logins of other services", "secrets.yml", reflect.TypeFor[SecretsFile](), func(string) bool { return true })
	section("Members of a program (type exec)", "", reflect.TypeFor[Exec](), func(string) bool { return true })
	b.WriteString(referenceTail)
	return b.String()
}

// isSection tells whether a key only holds other keys and says nothing of its own.
func isSection(k *keyInfo) bool {
	t := k.typ
	if t.Kind() == reflect.Pointer || isLeaf(t) {
		return false
	}
	if _, ok := scalarOf(t, k); ok {
		return false
	}
	_, isMap := reflect.Zero(t).Interface().(anyMap)
	return t.Kind() == reflect.Struct && !isMap
}

func (k *keyInfo) typeCell() string {
	text := typeName(k.typ, k)
	if k.min != "" || k.max != "" {
		text += " (" + strings.TrimPrefix(boundsText(k), "allowed: ") + ")"
	}
	return text
}

func (k *keyInfo) defaultCell() string {
	switch {
	case k.need == "yes":
		return "**required**"
	case k.hasDefault:
		return "`" + k.def + "`"
	case strings.HasPrefix(k.need, "exactly"):
		return k.need
	case k.defaultDoc != "" && k.need != "":
		return "required " + k.need + "; " + k.defaultDoc
	case k.need != "":
		return "required " + k.need
	}
	return k.defaultDoc
}

func (k *keyInfo) meaning() string {
	text := markdown.Replace(k.doc)
	if k.restart {
		text += " *Restart.*"
	}
	if k.added {
		text += " *Added.*"
	}
	return text
}

// markdown keeps text from being read as markup.
var markdown = strings.NewReplacer("<", "&lt;", "*", `\*`)

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

const referenceHead = `# Configuration reference

<!-- Generated from internal/config by: go test ./internal/config -run TestReferenceIsFresh -update -->

Configuration is YAML in one directory, ` + "`/etc/ucloud`" + ` unless ` + "`--config-dir` or `UCLOUD_CONFIG_DIR`" + ` names another:
` + "`config.yml`" + ` (no secrets; server, gateway and command line), ` + "`server.yml`" + ` and ` + "`secrets.yml`" + ` (server only). Every file begins
with ` + "`version: 1`" + `. Unknown keys, duplicate keys, wrong types and impossible combinations are errors; ` + "`ucloud config check`" + `
shows all of them at once. ` + "`ucloud config schema`" + ` prints the same reference as JSON Schema.

How values are written:

| Type | Form |
|---|---|
| host | ` + "`{ address: name, port: 443, scheme: https }` or `https://name:port`" + ` |
| address | ` + "`{ address: name, port: 5432 }`" + `; for a database also the directory of a Unix socket |
| listen | ` + "`\"127.0.0.1:8889\"` with a literal IP address, or `unix:/path`; `0.0.0.0` means all IPv4 addresses, `[::]` all IPv6 addresses" + ` |
| duration | ` + "`250ms`, `30s`, `15m`, `24h`, `7d`" + ` |
| size | ` + "`64MiB` (binary) or `10GB` (decimal)" + ` |
| path | absolute, without ` + "`..`" + ` |
| name | small letters, digits, ` + "`.`, `_`, `-`" + `, at most 63 |
| pattern | text with variables, ` + "`/home/#{localUsername}`; `##{` stands for `#{`" + ` |
| exec | path of a program, or a map; see the last table |
| secretRef | the text itself (never in config.yml), ` + "`{ file: /path }`, `{ env: NAME }` or `{ credential: name }`" + ` |
| octal | ` + "`0700`, `\"2770\"`" + ` |
| money | decimal number above 0, at most 6 digits after the point |

*Restart* marks keys whose change needs a restart of the service; a reload applies all others. *Added* marks keys that belong
to this implementation alone. ` + "`<name>`" + ` stands for a name that you choose, ` + "`[]`" + ` for an entry of a list.

Variables of drive patterns: always ` + "`locatorName`, `categoryName`, `providerId`; for users `ucloudUsername`, `localUsername`, `localPrimaryGroup`, `uid`; for projects\n`ucloudProjectId`, `ucloudProjectTitle`, `localGroupName`, `gid`; for MemberFiles all of them. Patterns of Slurm accounts have `partition`, `qos`,\n`productCategory` and `entityType`" + ` besides. A value that contains ` + "`/`, `..`" + `, NUL or a line break, is empty, or begins with ` + "`-`" + ` is refused where
the result is a path, a name or an argument.

` + "`server.yml` and `secrets.yml`" + ` must be regular files of root or the service account with mode 0600, 0400, or 0640 and the group
of the service account; the same holds for files that a secret refers to.
`

const referenceTail = `
## Differences from older configurations

These keys of older configurations still work and give a warning: ` + "`provider.ipc.directory`, `provider.logs.*`,\n`logs.rotation.retentionPeriodInDays`, `logs.serverStdOut`, `provider.envoy.internalAddressToProvider`, `provider.providerBranding`,\n`management.onQuotaUpdated`" + ` and its kind directly below ` + "`management`, `accounting` or `identityManagement`, `database.ssl`" + `, and the keys of
` + "`freeipa` and `gpfs` in `secrets.yml`" + ` that are no secrets.

` + "`internal.serverListen`" + ` must be a Unix socket and ` + "`internal.gatewayAddress`" + ` a loopback address: this version runs gateway and server
on one machine.
`
