//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

// TestBrowserJobs submits a job with a web interface in the console, sees its log grow, types in a terminal in it, opens
// its interface and ends it, all with the real Slurm.
func TestBrowserJobs(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	c := newCluster(t, computeSettings{slurm: "    web: { enabled: true, prefix: app-, suffix: .apps.localhost, portRange: 15000-16999 }\n"})
	app := filepath.Join(c.base, "bin", "webapp")
	c.must(accounts.Build("ucloud-im/internal/testkit/webapp/cmd", app))
	c.must(os.Chmod(app, 0o755))
	p := openBrowser(t, c.world)
	p.do("open the console", chromedp.Navigate(c.coreURL+"/#key=secret"), chromedp.WaitReady("#jobs-section:not([hidden])"),
		chromedp.Click("#job-new"), chromedp.WaitReady("#job-form:not([hidden])"),
		chromedp.SetValue("#job-app", shellApp(providerapi.ApplicationWeb).Metadata.Name+"@1"))
	eval[bool](p, `(document.getElementById("job-app").onchange(), true)`)
	gate := filepath.Join(c.ada.account.Home, "more")
	p.do("submit", chromedp.SendKeys("#job-name", "In the browser"),
		chromedp.SetValue("#job-fields textarea", `echo first line; while [ ! -e `+gate+` ]; do sleep 0.2; done; echo second line; exec `+app+` -listen 0.0.0.0:"$UCLOUD_PORT" -name mine`),
		chromedp.Click("#job-submit"), chromedp.WaitReady("#job-section:not([hidden])"))
	p.until("the job to run", func() bool { return p.text("#job-state") == "running" })
	p.until("the first line", func() bool { return strings.Contains(p.text("#job-logs"), "first line") })
	c.must(os.WriteFile(gate, nil, 0o644))
	p.until("the second line", func() bool { return strings.Contains(p.text("#job-logs"), "second line") })
	p.press("#job-buttons button:nth-of-type(1)")
	p.until("a terminal", func() bool {
		return strings.Contains(p.text("#terminal-status"), "connected") && strings.Contains(p.screen(), "$")
	})
	p.keys("echo $SLURM_JOB_ID-$((6*7))\r")
	id := eval[string](p, `document.getElementById("job-section").dataset.job`)
	p.until("the answer of the shell", func() bool { return strings.Contains(p.screen(), c.slurmID(id)+"-42") })
	p.shot("terminal")
	p.press("#terminal-close")
	p.press("#job-buttons button:nth-of-type(2)")
	p.do("the link", chromedp.WaitReady("#job-links a"))
	href := eval[string](p, `document.querySelector("#job-links a").href`)
	p.do("open the interface", chromedp.Navigate(href))
	p.until("the page of the application", func() bool { return strings.Contains(p.text("h1"), "This is mine") })
	p.shot("interface")
	c.must(c.terminate(id))
	c.becomes(id, providerapi.JobSuccess)
}
