package dial

import (
	"context"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
)

//attack:actor compromised core
//attack:does Names a destination whose address is one of the private ranges, or one in disguise.
//attack:control Transfers connect to addresses of the public internet alone, unless the operator allows more.
//attack:remove internal/transfers/dial/dial.go: func public4(ip netip.Addr) bool { return !inside(closed4, ip) } => func public4(ip netip.Addr) bool { return len(closed4) > 0 }
func TestAllows(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"8.8.8.8": true, "130.225.0.1": true, "1.1.1.1": true, "172.15.255.255": true, "172.32.0.0": true, "100.63.255.255": true,
		"100.128.0.0": true, "192.167.255.255": true, "223.255.255.255": true, "168.63.129.17": true,
		"2001:878::1": true, "2a00:1450:4001:800::200e": true, "2606:4700::1111": true,

		"0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false, "10.255.255.255": false, "127.0.0.1": false, "127.255.255.255": false,
		"100.64.0.0": false, "100.100.100.200": false, "100.127.255.255": false, "169.254.169.254": false, "172.16.0.0": false,
		"172.31.255.255": false, "192.0.0.192": false, "192.0.2.1": false, "192.88.99.1": false, "192.168.0.0": false,
		"198.18.0.1": false, "198.19.255.255": false, "198.51.100.1": false, "203.0.113.1": false, "224.0.0.1": false,
		"239.255.255.255": false, "240.0.0.1": false, "255.255.255.255": false, "168.63.129.16": false,
		"::": false, "::1": false, "::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::127.0.0.1": false, "::ffff:0:127.0.0.1": false,
		"fe80::1": false, "fec0::1": false, "fc00::1": false, "fd00:ec2::254": false, "ff02::1": false, "100::1": false,
		"2001:db8::1": false, "2001::1": false, "2001:10::1": false, "3fff::1": false, "fe80::1%eth0": false, "4000::1": false,
		"::ffff:8.8.8.8": true,
		// What is inside of NAT64 and 6to4 addresses decides.
		"64:ff9b::8.8.8.8": true, "64:ff9b::10.0.0.1": false, "64:ff9b::169.254.169.254": false, "64:ff9b::7f00:1": false,
		"64:ff9b:1::808:808": false, "2002:808:808::1": true, "2002:a00:1::1": false, "2002:7f00:1::": false, "2002:a9fe:a9fe::1": false,
	} {
		if got := new(Policy).Allows(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	if new(Policy).Allows(netip.Addr{}) {
		t.Error("no address is allowed")
	}
	p, err := New([]string{"127.0.0.0/8", "10.9.0.0/16", "fd00:1::/32"}, nil, false, "")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"127.0.0.1": true, "::ffff:127.0.0.1": true, "10.9.1.2": true, "10.8.1.2": false, "fd00:1::5": true, "fd00:2::5": false, "::1": false,
		"64:ff9b::10.9.1.2": true, "2002:a09:1::1": true, "192.168.1.1": false, "8.8.8.8": true,
	} {
		if got := p.Allows(netip.MustParseAddr(text)); got != want {
			t.Errorf("with allowed networks %s: %v", text, got)
		}
	}
}

// FuzzAllows: an IPv4 address is treated the same however it is wrapped.
func FuzzAllows(f *testing.F) {
	f.Add(uint32(0x7f000001))
	f.Add(uint32(0x08080808))
	f.Fuzz(func(t *testing.T, v uint32) {
		b := [4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
		ip := netip.AddrFrom4(b)
		want := new(Policy).Allows(ip)
		if want && (ip.IsPrivate() || ip.IsLoopback() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()) {
			t.Errorf("%v is allowed", ip)
		}
		var m, n, s [16]byte
		m[10], m[11] = 0xff, 0xff
		copy(m[12:], b[:])
		copy(n[:], []byte{0, 0x64, 0xff, 0x9b})
		copy(n[12:], b[:])
		copy(s[:], []byte{0x20, 0x02})
		copy(s[2:], b[:])
		for _, w := range [][16]byte{m, n, s} {
			if got := new(Policy).Allows(netip.AddrFrom16(w)); got != want {
				t.Errorf("%v: %v, and %v: %v", ip, want, netip.AddrFrom16(w), got)
			}
		}
	})
}

func TestCheck(t *testing.T) {
	t.Parallel()
	p := &Policy{Ports: []int{443, 8443}}
	for endpoint, want := range map[string]failure.Kind{
		"wss://im.example.org/ucloud/x/upload?token=secret": 0,
		"wss://im.example.org:8443/x":                       0,
		"wss://8.8.8.8/x":                                   0,
		"wss://[2a00:1450::1]/x":                            0,
		"WSS://im.example.org/x":                            0,
		"":                                                  failure.Invalid,
		"wss://":                                            failure.Invalid,
		"wss:im.example.org":                                failure.Invalid,
		"wss://im.example.org/#x":                           failure.Invalid,
		"wss://im.example.org:0/secret":                     failure.Invalid,
		"wss://im.example.org:99999/secret":                 failure.Invalid,
		"wss://im.example.org\x00/secret":                   failure.Invalid,
		"wss://im.example.org/" + strings.Repeat("x", maxEndpoint): failure.Invalid,
		"ws://im.example.org/secret":                               failure.Forbidden,
		"https://im.example.org/secret":                            failure.Forbidden,
		"file://im.example.org/secret":                             failure.Forbidden,
		"wss://user@im.example.org/secret":                         failure.Forbidden,
		"wss://user:secret@im.example.org/":                        failure.Forbidden,
		"wss://im.example.org:22/secret":                           failure.Forbidden,
		"wss://127.0.0.1/secret":                                   failure.Forbidden,
		"wss://[::1]/secret":                                       failure.Forbidden,
		"wss://[::ffff:10.0.0.1]/secret":                           failure.Forbidden,
		"wss://169.254.169.254/secret":                             failure.Forbidden,
		"wss://[fe80::1%25eth0]/secret":                            failure.Forbidden,
	} {
		err := p.Check(endpoint)
		if want == 0 && err != nil || want != 0 && failure.KindOf(err) != want {
			t.Errorf("%q: %v", endpoint, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the endpoint: %v", err)
		}
	}
	plain := &Policy{Plain: true}
	if err := plain.Check("ws://im.example.org/x"); err != nil {
		t.Error(err)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	if _, err := New([]string{"10.0.0.0"}, nil, false, ""); err == nil {
		t.Error("an address was taken for a network")
	}
	if _, err := New(nil, nil, false, "nothing"); err == nil {
		t.Error("nothing was taken for a certificate")
	}
}

// site is a server with TLS that takes WebSockets.
func site(t *testing.T, hits *atomic.Int64) (*httptest.Server, int, string) {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
			return
		}
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		ws.Close(websocket.StatusNormalClosure, "")
	}))
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	n, _ := strconv.Atoi(port)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	return s, n, ca
}

func connect(t *testing.T, p *Policy, endpoint string) error {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), endpoint, &websocket.DialOptions{HTTPClient: p.Client()})
	if err == nil {
		ws.CloseNow()
	}
	return err
}

// TestNameThatLeadsInside: the address that a name resolves to decides, at the moment of connecting; nothing is sent to
// an address that is not allowed.
//
//attack:actor compromised core
//attack:does Names a destination whose DNS name leads into the centre's own network.
//attack:control The address is checked when the connection is made, not when the name is read.
//attack:remove internal/transfers/dial/dial.go: return p.address(a.Addr()) => return nil
func TestNameThatLeadsInside(t *testing.T) {
	t.Parallel()
	var hits atomic.Int64
	_, port, ca := site(t, &hits)
	p, err := New(nil, nil, false, ca)
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "wss://localhost:" + strconv.Itoa(port) + "/x"
	if err := p.Check(endpoint); err != nil {
		t.Fatalf("the text does not tell: %v", err)
	}
	if err := connect(t, p, endpoint); !failure.Is(err, failure.Forbidden) || hits.Load() != 0 {
		t.Errorf("connected %d times: %v", hits.Load(), err)
	}
	p.Networks = prefixes("127.0.0.0/8", "::1/128")
	p.Ports = []int{1}
	if err := connect(t, p, endpoint); !failure.Is(err, failure.Forbidden) || hits.Load() != 0 {
		t.Errorf("to another port: %v", err)
	}
}

//attack:actor compromised core
//attack:does Redirects a transfer to another address.
//attack:control Redirections of transfers are refused.
//attack:remove internal/transfers/dial/dial.go: CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirect }, =>
func TestConnect(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1") // would fail
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	var hits atomic.Int64
	s, port, ca := site(t, &hits)
	p, err := New([]string{"127.0.0.0/8"}, []int{port}, false, ca)
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "wss://" + s.Listener.Addr().String()
	if err := connect(t, p, endpoint+"/x"); err != nil {
		t.Error(err)
	}
	before := hits.Load()
	if err := connect(t, p, endpoint+"/redirect"); !errors.Is(err, errRedirect) || hits.Load() != before+1 {
		t.Errorf("redirect: %v, %d requests", err, hits.Load()-before)
	}
	// Without the trust anchor the certificate is worth nothing.
	p.Roots = nil
	before = hits.Load()
	if err := connect(t, p, endpoint+"/x"); err == nil || hits.Load() != before {
		t.Errorf("a certificate that nobody vouches for was accepted: %v", err)
	}
}

func TestControl(t *testing.T) {
	t.Parallel()
	p := &Policy{Networks: prefixes("127.0.0.0/8")}
	for _, tc := range []struct{ network, address string }{
		{"udp4", "127.0.0.1:5"}, {"unix", "/x"}, {"tcp4", "nonsense"}, {"tcp6", "[fe80::1%lo]:5"}, {"tcp4", "10.0.0.1:5"},
	} {
		if err := p.control(context.Background(), tc.network, tc.address, nil); !failure.Is(err, failure.Forbidden) {
			t.Errorf("%v: %v", tc, err)
		}
	}
	if err := p.control(context.Background(), "tcp4", "127.0.0.1:5", nil); err != nil {
		t.Error(err)
	}
}
