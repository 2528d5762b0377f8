// Package archtest holds the tests that keep the module's shape: which program links what, and which package may
// import which. A rule has a reason; the reason is what the test prints.
package archtest
