package jobtemplate

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
)

// variables are those of the tables.
func variables() map[string]any {
	return map[string]any{
		"s": "it's $HOME", "n": json.Number("42"), "big": json.Number("9007199254740993"), "huge": json.Number("123456789012345678901234567890"), "f": json.Number("0.10"), "million": json.Number("1000000"),
		"t": true, "list": []string{"a b", "c", "it's"}, "code": Code("srun --mpi=pmix "), "none": nil, "empty": "",
		"ucloud": map[string]any{"jobId": "512", "machine": map[string]any{"cpu": 64}}, "name": "bob", "names": []any{json.Number("1"), "x", true},
		"map": map[string]any{"b": json.Number("2"), "a": json.Number("1")}, "nested": []any{[]any{"x"}}, "_injected_modules": []string{"GCC/11", "x; touch pwned"},
	}
}

func functions() map[string]Function {
	return map[string]Function{
		"srun": func(context.Context, []any) (any, error) { return Code("srun "), nil },
		"fails": func(context.Context, []any) (any, error) {
			return nil, failure.New(failure.Invalid, "It did not work")
		},
		"echo": func(_ context.Context, args []any) (any, error) { return args[0], nil },
	}
}

func render(source string) (string, error) {
	return Render(context.Background(), source, Options{Variables: variables(), Functions: functions()})
}

func TestRender(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ source, want string }{
		// Printing.
		{"plain $text 'x' \\ \n", "plain $text 'x' \\ \n"},
		{"{{ s }}", `'it'"'"'s $HOME'`},
		{"{{ n }} {{ big }} {{ huge }} {{ f }} {{ million }} {{ t }} {{ -n }} {{ -huge }}", "42 9007199254740993 123456789012345678901234567890 0.10 1000000 True -42 -123456789012345678901234567890"},
		{"[{{ none }}{{ nothing }}{{ nothing.at.all }}{{ s.x }}{{ list[9] }}]", "[]"},
		{"{{ empty }}", "''"},
		{"{{ list }}", `'a b' 'c' 'it'"'"'s'`},
		{"{{ names }} {{ [1, 'x', s] }} {{ () }}", `1 'x' True 1 'x' 'it'"'"'s $HOME' `},
		{"{{ code }}x", "srun --mpi=pmix x"},
		{"{{ ucloud.jobId }} {{ ucloud.machine.cpu }} {{ ucloud['jobId'] }} {{ list[0] }} {{ list[-1] }} {{ list.1 }}", `'512' 64 '512' 'a b' 'it'"'"'s' 'c'`},
		{"{{ s if t else n }} {{ s if not t else n }} {{ s if not t }}", `'it'"'"'s $HOME' 42 `},
		// Quoting where data and code meet.
		{"{{ s | safe }}", "it's $HOME"},
		{"{{ s | e }} {{ s | escape | e }} {{ s | e | forceescape }}", `'it'"'"'s $HOME' 'it'"'"'s $HOME' ''"'"'it'"'"'"'"'"'"'"'"'s $HOME'"'"''`},
		{"{{ code ~ s }}", `srun --mpi=pmix 'it'"'"'s $HOME'`},
		{"{{ 'a' + s }} {{ 'a' ~ n }} {{ n + 'x' }}", `'ait'"'"'s $HOME' 'a42' '42x'`},
		{"{{ list | join(' ') }} {{ list | join('' | safe) }}", `'a b c it'"'"'s' 'a b''c''it'"'"'s'`},
		{"{{ code | trim }} {{ code | upper }} {{ code | replace('m', 's') }}", "srun --mpi=pmix 'SRUN --MPI=PMIX ' 'srun --spi=psix '"},
		{"{% set x %}a {{ s }}{% endset %}{{ x }} {{ x | replace(\"'\", '') }}", `a 'it'"'"'s $HOME' 'a it""s $HOME'`},
		{"{% macro m(x, y=2) %}<{{ x }},{{ y }}>{% endmacro %}{{ m(s) }}{{ m(1, y=s) }}{{ m() }}", `<'it'"'"'s $HOME',2><1,'it'"'"'s $HOME'><,2>`},
		{"{% filter upper %}a{{ s }}{% endfilter %}", `'A'"'"'IT'"'"'"'"'"'"'"'"'S $HOME'"'"''`},
		{"{% filter trim %}  {{ s }}  {% endfilter %}", `'it'"'"'s $HOME'`},
		{"{% autoescape false %}{{ s }}{% endautoescape %} {{ n }}", "it's $HOME 42"},
		{"{% raw %}{{ s }} {% if %}{% endraw %}", "{{ s }} {% if %}"},
		{"{{ map | tojson }} {{ [s] | tojson }} {{ none | tojson }}", `'{"a":1,"b":2}' '["it'"'"'s $HOME"]' 'null'`},
		// The dialect's own filters.
		{`{{ true | flag("--yes") }}|{{ false | flag("--yes") }}|{{ false | flag("--yes", "--no") }}|{{ none | flag("-x") }}`, "'--yes'||'--no'|"},
		{`{{ 42 | option("--count") }}|{{ 42 | option("--count=") }}|{{ 42 | option("--count", false) }}|{{ None | option("--x") }}|{{ nothing | option("--x=") }}`, "--count '42'|'--count=42'|'--count42'||"},
		{`{{ s | option("--x") }} {{ s | option("--x=") }} {{ list | option("-i") }} {{ s | option(s) }}`, `--x 'it'"'"'s $HOME' '--x=it'"'"'s $HOME' -i 'a b' -i 'c' -i 'it'"'"'s' 'it'"'"'s $HOME' 'it'"'"'s $HOME'`},
		// Statements.
		{"{% if n > 41 and not none %}a{% elif t %}b{% else %}c{% endif %}{% if nothing is defined %}d{% elif nothing == None %}e{% endif %}", "ae"},
		{"{% for x in list %}{{ loop.index }}{{ x }}{% if not loop.last %},{% endif %}{% else %}none{% endfor %}{% for x in [] %}{% else %}none{% endfor %}", `1'a b',2'c',3'it'"'"'s'none`},
		{"{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in map %}{{ k }}{% endfor %}{% for (a, b) in [(1, 2)] %}{{ a + b }}{% endfor %}", "'a'=1;'b'=2;'a''b'3"},
		{"{% for i in range(5) if i is even %}{{ i }}{{ loop.cycle('x', 'y') }}{% endfor %} {{ range(3) }} {{ range(5, 0, -2) }}", "0'x'2'y'4'x' 0 1 2 5 3 1"},
		{"{% set x = 1 %}{% for i in range(3) %}{% set x = i %}{% endfor %}{{ x }}{% if t %}{% set x = 7 %}{% endif %}{{ x }}", "17"},
		{"{% set ns = namespace(c=0) %}{% for i in range(4) %}{% set ns.c = ns.c + i %}{% endfor %}{{ ns.c }}", "6"},
		{"{% with a = 1, b = n %}{{ a + b }}{% endwith %}{{ a }}", "43"},
		{"{% set a = 1 if t else 2 %}{{ a }}{% set b = 2 if none %}{{ b }}", "1"},
		{"a  {%- if t -%}  b  {%- endif %}  c {{- n -}}  d {#- x -#} e", "ab  c42de"},
		{"a\n{# comment {{ x #}\nb", "a\n\nb"},
		{"{{\n  s\n    | upper\n}} {% set y = [\n 'a',\n 'b'\n] %}{{ y }}", `'IT'"'"'S $HOME' 'a' 'b'`},
		{`{{ "a\"b\\" }} {{ 'x\ny' }} {{ "é\u00e9" }} {{ '}}' }} {{ "%}" }}{% if '%}' %}z{% endif %}`, "'a\"b\\' 'x\ny' 'éé' '}}' '%}'z"},
		// Operators.
		{"{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ 4 / 2 }} {{ n * 2.5 }} {{ f + 1 }}", "3 -4 2 3.5 1024 0.5 7 9 2.0 105.0 1.1"},
		{"{{ 1000000 * 1000000 }} {{ 1e20 }} {{ 1e6 | int }} {{ 10.0 ** 20 }}", "1000000000000 100000000000000000000.0 1000000 100000000000000000000.0"},
		{"{{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ [1] * 2 + [3] }}", "'ababab' 'ababab' 1 1 3"},
		{"{{ 1 < 2 }} {{ 'a' < 'b' }} {{ n == 42.0 }} {{ s != 'x' }} {{ 'it' in s }} {{ 'z' not in s }} {{ 'c' in list }} {{ 'a' in map }} {{ 1 == '1' }}", "True True True True True True True True False"},
		{"{{ none or s }} {{ t and n }} {{ not none }}", `'it'"'"'s $HOME' 42 True`},
		{"{{ '%s-%03d-%.2f' % (s, n, f) }} {{ '%d%%' % 5 }} {{ '%s' | format(n) }}", `'it'"'"'s $HOME-042-0.10' '5%' '42'`},
		{"{{ s[0] }} {{ s[1:4] }} {{ list[1:] }} {{ list[::-1] }} {{ s[-4:] }}", `'i' 't'"'"'s' 'c' 'it'"'"'s' 'it'"'"'s' 'c' 'a b' 'HOME'`},
		// Filters.
		{"{{ nothing | default('x') }} {{ none | d(3) }} {{ empty | default('y', true) }} {{ n | default(0) }}", "'x' 3 'y' 42"},
		{"{{ '3.9' | int }} {{ 'x' | int(7) }} {{ 'ff' | int(0, 16) }} {{ '2' | float }} {{ 2.567 | round(2) }} {{ 2.1 | round(0, 'ceil') | int }} {{ huge | int }} {{ -3 | abs }}", "3 7 255 2.0 2.57 3 123456789012345678901234567890 3"},
		{"{{ [3, 1, 2] | sort }} {{ [3, 1, 2] | max }} {{ ['b', 'A'] | sort }} {{ [1, 2] | sum }} {{ [1, 1, 2] | unique }} {{ list | length }} {{ s | count }}", "1 2 3 3 'A' 'b' 3 1 2 3 10"},
		{"{{ list | first }} {{ list | last }} {{ list | reverse }} {{ 'abc' | reverse }} {{ [] | first }}", `'a b' 'it'"'"'s' 'it'"'"'s' 'c' 'a b' 'cba' `},
		{"{{ list | map('upper') }} {{ [map] | map(attribute='a') }} {{ range(6) | select('even') }} {{ range(4) | reject('odd') }} {{ [map, {'a': 5}] | selectattr('a', 'gt', 2) | map(attribute='a') }}", `'A B' 'C' 'IT'"'"'S' 1 0 2 4 0 2 5`},
		{"{% for row in range(5) | batch(2) %}{{ row }};{% endfor %}{% for col in range(5) | slice(2) %}{{ col }};{% endfor %}{% for k, g in [map, {'a': 1}] | groupby('a') %}{{ k }}:{{ g | length }}{% endfor %}", "0 1;2 3;4;0 1 2;3 4;1:2"},
		{"{% for k, v in map | dictsort(reverse=true) %}{{ k }}{{ v }}{% endfor %} {{ map | items | length }} {{ map.keys() }} {{ map.get('z', 'd') }}", "'b'2'a'1 2 'a' 'b' 'd'"},
		{"{{ 'a-b' | title }} {{ 'aB' | capitalize }} {{ 'x' | center(3) }} {{ 'a\nb' | indent(2) }} {{ 'long text here' | truncate(9) }} {{ 'a b c' | wordwrap(3) }} {{ 'a b' | urlencode }} {{ 'a, b' | wordcount }}", "'A-B' 'Ab' ' x ' 'a\n  b' 'long text here' 'a b\nc' 'a%20b' 2"},
		{"{{ s.upper() }} {{ 'a,b'.split(',') }} {{ 'x y'.split() }} {{ '-'.join(['a', 'b']) }} {{ s.startswith('it') }} {{ ' x '.strip() }} {{ '7'.zfill(3) }} {{ 'a'.replace('a', s) }}", `'IT'"'"'S $HOME' 'a' 'b' 'x' 'y' 'a-b' True 'x' '007' 'it'"'"'s $HOME'`},
		// Tests.
		{`{{ name is match("B", ignorecase=true) }} {{ name is not match("o") }} {{ name is search("o") }} {{ name is not search("ob") }} {{ "a\nb" is search("^b", multiline=true) }} {{ name is match("b") and t }}`, "True True True False True True"},
		{"{{ n is number }} {{ s is string }} {{ list is sequence }} {{ map is mapping }} {{ 6 is divisibleby 3 }} {{ 6 is divisibleby(4) }} {{ n is odd }} {{ none is none }} {{ t is boolean }} {{ n is integer }} {{ f is float }}", "True True True True True False False True True True True"},
		// Functions.
		{"{{ srun() }}x {{ echo(s) }} {{ echo(huge) }} {{ dict(a=1).a }} {{ echo([1, s]) }}", `srun x 'it'"'"'s $HOME' 123456789012345678901234567890 1 1 'it'"'"'s $HOME'`},
		{"{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }} {% set j = joiner(';' | safe) %}{{ j() }}1{{ j() }}2 {{ lipsum(1) | length > 10 }}", "'a''b''a' 1;2 True"},
		{"{% set l = [] %}{{ l.append(1) }}{{ l.append(2) }}{{ l }}", "1 2"},
		{"{% for m in _injected_modules %}module load {{ m }}\n{% endfor %}", "module load 'GCC/11'\nmodule load 'x; touch pwned'\n"},
	} {
		got, err := render(tc.source)
		if err != nil || got != tc.want {
			t.Errorf("%s\n got %s, %v\nwant %s", tc.source, got, err, tc.want)
		}
	}
}

// TestRefused: templates with errors, and what is said about them.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ source, why string }{
		{"a\nb {{ x", "Line 2 of the template has a {{ without its end"},
		{"{% if t %}\nx", "the end of a statement is missing: endif"},
		{"\n\n{% endif %}", "Line 3 of the template cannot be read: there is no statement \"endif\" here"},
		{"{% include 'x' %}", `there is no statement "include"`},
		{"{% import 'x' as y %}", `there is no statement "import"`},
		{"{% from 'x' import y %}", `there is no statement "from"`},
		{"{% extends '/etc/passwd' %}", `there is no statement "extends"`},
		{"{% block x %}{% endblock %}", `there is no statement "block"`},
		{"{% call x() %}{% endcall %}", `there is no statement "call"`},
		{"{% comment %}{% endcomment %}", `there is no statement "comment"`},
		{"{{ }}", "Line 1 of the template cannot be read"},
		{"{{ a b }}", "Line 1 of the template cannot be read"},
		{"{{ a | }}", "cannot be read"},
		{"{{ 'a }}", "a string that does not end"},
		{"{{ (a }}", "lacks a ')'"},
		{"{{ [a) }}", "unexpected ')'"},
		{"{{ a $ b }}", "unexpected '$'"},
		{"{{ a ; b }}", "unexpected ';'"},
		{"{{ `id` }}", "unexpected '`'"},
		{"{{ a !b }}", "unexpected '!'"},
		{"{# x", "comment that does not end"},
		{"{% raw %} x", "raw block that does not end"},
		{"x\n{{ s | nofilter }}", `Line 2 of the template uses the filter "nofilter", which does not exist`},
		{"{{ s is notest }}", `the test "notest"`},
		{"{{ nofunction() }}", "calls nofunction(), which is not a function (undefined: nofunction)"},
		{"{{ s.nomethod() }}", "calls nomethod(), which a text does not have"},
		{"{{ ucloud.jobId() }}", "calls jobId()"},
		{"{{ map }}", "prints a map"},
		{"{{ nested }}", "prints a list that contains a list"},
		{"{{ srun }}", "prints a function"},
		{"{{ 'a\\x00' }}", "wrong escape"},
		{"{{ 1 / 0 }}", "divides by zero"},
		{"{{ 1 % 0 }}", "divides by zero"},
		{"{{ 2 ** 64 }}", "too large"},
		{"{{ 9223372036854775807 + 1 }}", "too large"},
		{"{{ 1e308 * 10 }}", "too large"},
		{"{{ 99999999999999999999 }}", "cannot be read"},
		{"{{ s - 1 }}", "uses - with a text and a number"},
		{"{{ s < 1 }}", "compares a text with a number"},
		{"{{ fails() }}", "Line 1 of the template failed: It did not work"},
		{"{{ s | upper(x=1) }}", "does not have"},
		{"{% set s.x = 1 %}", "not a namespace"},
		{"{% for a, b in [1] %}{% endfor %}", "as if it were a list"},
		{"{% for a, b in [[1]] %}{% endfor %}", "takes 1 values apart into 2"},
		{"{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "gives m() 2 arguments"},
		{"{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "does not have"},
		{"{{ s is match('(') }}", "wrong regular expression"},
		{"{{ first }}{{ unknown_parameter.x }}{{ 1 / 0 }}", "(undefined: first, unknown_parameter"},
		{"{{ s | int(x=\n) }}", "cannot be read"},
		{strings.Repeat("x", 512<<10+1), "longer than"},
	} {
		_, err := render(tc.source)
		if !failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), tc.why) {
			t.Errorf("%.100s\n got %v\nwant %s", tc.source, err, tc.why)
		}
	}
}

// TestBounds: what would take all time or memory elsewhere.
//
//attack:actor compromised core
//attack:does Sends a template whose output has no end.
//attack:control Evaluation of templates has budgets of steps, bytes, depth, time and output.
//attack:remove internal/jobtemplate/machine.go: if m.out.Len()+len(s) > m.limits.Output { => if m.out.Len() < 0 {
//attack:run output
func TestBounds(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("{% if t %}", 5000)
	for name, source := range map[string]string{
		"range":          "{{ range(1000000000) }}",
		"range twice":    "{% for i in range(30000) %}{% for j in range(30000) %}{% endfor %}{% endfor %}",
		"loop":           "{% for i in range(1000) %}{% for i in range(1000) %}{% for i in range(1000) %}x{% endfor %}{% endfor %}{% endfor %}",
		"repetition":     "{{ 'x' * 1000000000 }}",
		"list":           "{{ ([1] * 1000000000) | length }}",
		"doubling":       "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
		"doubling list":  "{% set ns = namespace(x=[1, 2]) %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
		"recursion":      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
		"mutual":         "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
		"fork":           "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
		"lipsum":         "{{ lipsum(1000000) }}",
		"center":         "{{ 'x' | center(1000000000) }}",
		"indent":         "{{ ('\n' * 100000) | indent(1000000) }}",
		"format":         "{{ '%999999999d' % 1 }}",
		"replace":        "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
		"replace empty":  "{{ ('x' * 1000000) | replace('', 'y' * 1000000) }}",
		"trim":           "{{ ('a' * 2000000) | trim(('é' * 1000000) ~ 'a') }}",
		"strip":          "{{ ('a' * 2000000).lstrip(('é' * 1000000) ~ 'a') }}",
		"join":           "{{ range(100000) | join('x' * 100000) }}",
		"output":         "{% set x = 'x' * 600000 %}{{ x }}{{ x }}",
		"power":          "{{ 9 ** 9 ** 9 ** 9 }}",
		"regexp":         "{{ ('a' * 1000000) is match('((a{0,50}){0,50}){0,50}') }}",
		"regexp long":    "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{% if x is search('(a*)*b') %}{% endif %}{% endfor %}",
		"brackets":       "{{ " + strings.Repeat("(", 100000) + "1" + strings.Repeat(")", 100000) + " }}",
		"lists":          "{{ " + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + " }}",
		"blocks":         deep,
		"long sum":       "{{ x is defined" + strings.Repeat(" == 1", 120000) + " }}",
		"attributes":     "{{ x" + strings.Repeat(".a", 200000) + " }}",
		"calls":          "{{ x" + strings.Repeat("()", 200000) + " }}",
		"self list":      "{% set l = [] %}{{ l.append(l) }}{{ l == [l] }}{{ l | tojson }}",
		"big dag":        "{% set ns = namespace(x=[1]) %}{% for i in range(18) %}{% set ns.x = [ns.x, ns.x, ns.x, ns.x] %}{% endfor %}{{ echo(ns.x) }}",
		"big dag json":   "{% set ns = namespace(x=[1]) %}{% for i in range(18) %}{% set ns.x = [ns.x, ns.x, ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
		"dag equal":      "{% set ns = namespace(x=[1]) %}{% for i in range(18) %}{% set ns.x = [ns.x, ns.x, ns.x, ns.x] %}{% endfor %}{{ ns.x == ns.x }}",
		"map of map":     "{{ [1] | map('map', 'map', 'map', 'map') }}",
		"sort":           "{% set x = range(100000) | list %}{% for i in range(1000) %}{% set y = x | sort %}{% endfor %}",
		"many variables": "{% for i in range(100000) %}{% set x %}" + strings.Repeat("y", 1000) + "{% endset %}{% endfor %}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			_, err := render(source)
			if !failure.Is(err, failure.Invalid) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestLongChains are long but not deep, and work.
func TestLongChains(t *testing.T) {
	t.Parallel()
	got, err := render("{{ 0" + strings.Repeat(" + 1", 20000) + " }}")
	if err != nil || got != "20000" {
		t.Errorf("got %.40s, %v", got, err)
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	slow := func(ctx context.Context, _ []any) (any, error) {
		<-time.After(2 * time.Millisecond)
		return Code(""), ctx.Err()
	}
	_, err := Render(context.Background(), "{% for i in range(100000) %}{{ slow() }}{% endfor %}", Options{Functions: map[string]Function{"slow": slow}, Limits: Limits{Time: 50 * time.Millisecond}})
	if !failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), "takes longer") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Render(ctx, "{% for i in range(10000) %}x{% endfor %}", Options{}); err == nil {
		t.Error("a cancelled context did not stop it")
	}
}

func TestRaw(t *testing.T) {
	t.Parallel()
	got, err := Render(context.Background(), "{{ s }} {{ n }} {{ list }}{% set x %}{{ s }}{% endset %} {{ x ~ '!' }}", Options{Variables: variables(), Raw: true})
	if err != nil || got != "it's $HOME 42 a b c it's it's $HOME!" {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestFunctionErrors(t *testing.T) {
	t.Parallel()
	f := func(context.Context, []any) (any, error) { return nil, errors.New("secret") }
	_, err := Render(context.Background(), "{{ f() }}", Options{Functions: map[string]Function{"f": f}})
	if err == nil || strings.Contains(failure.Why(err), "secret") {
		t.Errorf("got %v", err)
	}
	odd := func(context.Context, []any) (any, error) { return struct{}{}, nil }
	if _, err := Render(context.Background(), "{{ f() }}", Options{Functions: map[string]Function{"f": odd}}); !failure.Is(err, failure.Invalid) {
		t.Errorf("got %v", err)
	}
}

func TestExpand(t *testing.T) {
	t.Parallel()
	snippets := map[string]Snippet{
		"load": func(args []string) (string, string, error) {
			return "load " + strings.Join(args, "+") + "\n{- load -}\n{{ 1 / zero }}", "the load text", nil
		},
		"fails": func([]string) (string, string, error) {
			return "", "", failure.New(failure.Invalid, "Not there")
		},
	}
	e, err := Expand([]Part{{"the invocation", "a {- load -} b\n{- load(\"x\", \"y z\") -}\n{{- n -}} {-load-} {- a b -} {- -}"}, {"the workflow", "c\n{{ 1 / 0 }}"}}, snippets)
	if err != nil {
		t.Fatal(err)
	}
	want := "a load \n{- load -}\n{{ 1 / zero }} b\nload x+y z\n{- load -}\n{{ 1 / zero }}\n{{- n -}} {-load-} {- a b -} {- -}\nc\n{{ 1 / 0 }}"
	if e.Text != want {
		t.Errorf("got\n%s", e.Text)
	}
	for line, want := range map[int]Part{1: {"the load text", "1"}, 5: {"the load text", "2"}, 7: {"the invocation", "3"}, 8: {"the workflow", "1"}, 9: {"the workflow", "2"}} {
		name, original := e.Origin(line)
		if name != want.Name || string(rune('0'+original)) != want.Text {
			t.Errorf("line %d: got %s %d", line, name, original)
		}
	}
	_, err = Render(context.Background(), e.Text, Options{Origin: e.Origin, Variables: map[string]any{"zero": 1}})
	if failure.Why(err) != "Line 2 of the workflow divides by zero (undefined: n)" {
		t.Errorf("got %v", err)
	}
	for source, why := range map[string]string{
		"\n{- nothing -}":    "Line 2 of the workflow uses {- nothing -}, which does not exist",
		"{- fails(\"x\") -}": "Line 1 of the workflow: Not there",
	} {
		if _, err := Expand([]Part{{"the workflow", source}}, snippets); failure.Why(err) != why {
			t.Errorf("got %v", err)
		}
	}
}

func TestLiteral(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "a", `"`, `\`, `\"`, "a\nb", "{{ x }}", "%}", "é", `\n`, "'"} {
		got, err := Render(context.Background(), "{{ "+Literal(s)+" | safe }}", Options{})
		if err != nil || got != s {
			t.Errorf("%q became %q, %v", s, got, err)
		}
	}
}
