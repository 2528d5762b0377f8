package ident

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// HeaderUser is the header with which Core names the user on whose behalf it calls (contract 00 section 5).
const HeaderUser = "Ucloud-Username"

// QueryUserHint is the query parameter that serves the same purpose where headers cannot be set.
const QueryUserHint = "usernameHint"

// HeaderValue encodes the user for [HeaderUser]: padded standard base64 of the UTF-8 name.
func (u UCloudUser) HeaderValue() string { return base64.StdEncoding.EncodeToString([]byte(u)) }

// HintValue encodes the user for [QueryUserHint]: padded URL-safe base64, as Core does.
func (u UCloudUser) HintValue() string { return base64.URLEncoding.EncodeToString([]byte(u)) }

// DecodeUserHeader decodes the value of [HeaderUser]. It is strict: standard alphabet, padding required, canonical.
// An undecodable header is an error for the caller to answer with 400, never "no user".
func DecodeUserHeader(v string) (UCloudUser, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(v)
	if err != nil || strings.ContainsAny(v, "\r\n") { // the decoder skips line breaks

		return "", fmt.Errorf("%w: the %s header is not standard base64", ErrBadUser, HeaderUser)
	}
	return ParseUCloudUser(string(raw))
}

// DecodeUserHint decodes the already percent-decoded value of [QueryUserHint]. Core uses the URL-safe alphabet, the
// web client the standard one without escaping, so that a '+' may arrive as a blank; padding is optional.
func DecodeUserHint(v string) (UCloudUser, error) {
	v = strings.TrimRight(v, "=")
	v = strings.NewReplacer("-", "+", "_", "/", " ", "+").Replace(v)
	raw, err := base64.RawStdEncoding.Strict().DecodeString(v)
	if err != nil || strings.ContainsAny(v, "\r\n") {
		return "", fmt.Errorf("%w: %s is not base64", ErrBadUser, QueryUserHint)
	}
	return ParseUCloudUser(string(raw))
}
