//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/idp"
)

const oidcServices = `
services:
  type: Slurm
  unmanaged: true
  identityManagement:
    type: OIDC
    oidc:
      issuer: %[1]s
      clientId: ucloud
      scopes: [profile, email]
      caFile: %[2]s/config/idp.pem
      onUserConnected: %[2]s/bin/find-account
  fileSystems:
    %[3]s:
      payment: { type: Resource, unit: GB }
      driveLocators:
        home: { entity: User, pattern: "%[4]s", title: Home, freeQuota: 0 }
`

// findAccount is the site's program: it knows one person of the identity provider, whose uid stands in a file.
const findAccount = `#!/bin/sh
grep -q '"ucloudUsername":"Ada#1815"' "$1" || { echo '{"userMessage":"Only Ada has an account here"}'; exit 77; }
grep -q '"subject":"id1"' "$1" || exit 77
grep -q '"emailVerified":true' "$1" || exit 77
printf '{"uid":%%s}\n' "$(cat %s)"
`

// TestBrowserLogin connects in a real browser, over TLS, at an identity provider that others have written: connect in the
// console, log in, see both accounts, agree, and browse files.
func TestBrowserLogin(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	var p *idp.Independent
	const secret = "e2e-cl13nt-s3cr3t"
	w := newWorld(t, settings{tls: true, secrets: "version: 1\noidc: { clientSecret: " + secret + " }\n", services: func(w *world) string {
		p = idp.NewIndependent(t, secret, w.gateURL+"/ucloud-oidc")
		w.must(os.WriteFile(filepath.Join(w.base, "config", "idp.pem"), p.Authority(), 0o644))
		program := filepath.Join(w.base, "bin", "find-account")
		w.must(os.WriteFile(program, fmt.Appendf(nil, findAccount, filepath.Join(w.base, "bin", "uid")), 0o755))
		w.must(os.Chmod(program, 0o755))
		return fmt.Sprintf(oidcServices, p.Issuer, w.base, category, w.homePattern())
	}})
	ada, grace := w.addPerson("Ada#1815"), w.addPerson("Grace#1906")
	w.must(os.WriteFile(filepath.Join(w.base, "bin", "uid"), fmt.Appendf(nil, "%d", ada.account.UID), 0o644))
	w.must(os.WriteFile(filepath.Join(ada.account.Home, "notes.txt"), []byte("engine"), 0o644))
	w.owned(ada, ada.account.Home)

	// What operators are told.
	testkit.Eventually(t, "the issuer to be found", func() bool {
		out, _ := w.cli("doctor", "--check", "service", "--service-account", w.site.Service.Name)
		return strings.Contains(out, "redirectUri: "+w.gateURL+"/ucloud-oidc") && strings.Contains(out, "the identity provider answers")
	})

	spki := sha256.Sum256(p.SPKI())
	b := openBrowser(t, w, chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(spki[:])))
	b.do("press Connect", chromedp.Navigate(w.coreURL+"/#key=secret"),
		chromedp.WaitReady("#connect:not([hidden])"), chromedp.Click("#connect"), chromedp.WaitReady("#continue:not([hidden])"))
	link := eval[string](b, `document.getElementById("continue").href`)
	if !strings.HasPrefix(link, w.gateURL+"/ucloud/"+provider+"/integration/") {
		t.Fatalf("Core is given %q", link)
	}
	b.do("log in", chromedp.Navigate(link), chromedp.WaitReady("#username"), chromedp.SendKeys("#username", p.Name),
		chromedp.SendKeys("#password", p.Password))
	b.shot("identity-provider")
	b.do("send the form", chromedp.Click("form button"), chromedp.WaitReady(`button[value="connect"]`))
	b.shot("consent")
	if text := b.text("main"); !strings.Contains(text, "Ada#1815") || !strings.Contains(text, ada.account.Name) {
		t.Errorf("the question does not name both accounts:\n%s", text)
	}
	if at := eval[string](b, `location.href`); strings.ContainsAny(at, "?#") {
		t.Errorf("code and state are still in the address bar: %s", at)
	}
	if c := eval[string](b, `document.cookie`); c != "" {
		t.Errorf("a script of the page can read the cookie %q", c)
	}
	if out, err := w.cli("users", "list"); err != nil || strings.Contains(out, ada.account.Name) {
		t.Errorf("connected without consent: %s %v", out, err)
	}

	b.do("agree", chromedp.Click(`button[value="connect"]`))
	testkit.Eventually(t, "the page to show success", func() bool {
		body, _ := chromedp.Run(b.ctx, chromedp.Text("body")) // may hit a reload
		return strings.Contains(body, "Connected.") && strings.Contains(body, ada.account.Name)
	})
	b.shot("connected")
	w.waitDrive(ada)
	b.openDrive()
	b.listed(ada.home(), "notes.txt")

	// The login of this browser does for nobody else, and the site's program decides who may come.
	var res providerapi.ConnectResponse
	w.must(w.call(grace.name, http.MethodPost, "/api/providers/integration/connect", map[string]string{"provider": provider}, &res))
	b.do("open the link of Grace", chromedp.Navigate(res.RedirectTo), chromedp.WaitReady("#username"), chromedp.SendKeys("#username", p.Name),
		chromedp.SendKeys("#password", p.Password), chromedp.Click("form button"))
	testkit.Eventually(t, "Grace to be refused", func() bool {
		body, _ := chromedp.Run(b.ctx, chromedp.Text("body")) // may hit a reload
		return strings.Contains(body, "Only Ada has an account here")
	})
	b.shot("refused")
	for _, log := range []string{w.server.tail(), w.gateway.tail()} {
		if strings.Contains(log, secret) {
			t.Error("the client secret is logged")
		}
	}
}
