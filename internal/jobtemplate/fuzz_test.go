package jobtemplate

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
)

// FuzzRender: no template takes much time or memory, ends the process, or fails without saying that it is the template's fault.
func FuzzRender(f *testing.F) {
	for _, s := range []string{
		"{{ s }} {{ list | join(s) }}", "{% for x in range(9) %}{{ loop.index }}{% else %}{% endfor %}", "{% macro m(a, b=1) %}{{ m(a) }}{% endmacro %}{{ m(1) }}",
		"{% if s is match('a+', ignorecase=true) %}x{% elif n > 3 %}{% endif %}", "{% set ns = namespace(a=1) %}{% set ns.a = ns.a * 2 ** 9 %}{{ ns.a }}",
		"{% raw %}{{ }}{% endraw %}{# x #}{{- n -}}", "{% filter upper | trim %}{{ s }}{% endfilter %}", "{% with a = [1, {'b': 2}] %}{{ a[1].b }}{{ a[::-1] }}{% endwith %}",
		"{{ '%5.2f' % f }}{{ s[1:-1] }}{{ map | dictsort | tojson }}", "{% autoescape false %}{{ s ~ code }}{% endautoescape %}", "{{ x if y else z }}{{ 1 if not a in b }}",
		"{{ (1).b }}{{ ().c }}{{ a(b=, ) }}{{ in }}{{ is }}{{ not }}", "{{ in in in }}{{ x is not in y }}", "{% set x %}{% endset %}{% set %}{% for %}{% macro %}", "{{ \"\\x41\\u0041\\",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, source string) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		text, err := Render(context.Background(), source, Options{Variables: variables(), Functions: functions(), Limits: Limits{Output: 1 << 16}})
		elapsed := time.Since(start)
		runtime.ReadMemStats(&after)
		if err != nil && !failure.Is(err, failure.Invalid) {
			t.Errorf("%v", err)
		}
		if err != nil && strings.HasSuffix(failure.Why(err), "cannot be rendered") {
			t.Errorf("a panic: %v", err)
		}
		if len(text) > 1<<16 {
			t.Errorf("%d bytes of output", len(text))
		}
		// Generous, for a busy machine: the bound in the engine is two seconds and 32 MiB for values.
		const most = 512 << 20
		if elapsed > 20*time.Second || after.TotalAlloc-before.TotalAlloc > most {
			t.Errorf("took %v and %d MiB", elapsed, (after.TotalAlloc-before.TotalAlloc)>>20)
		}
	})
}
