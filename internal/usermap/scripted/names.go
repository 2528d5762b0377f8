package scripted

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"

	"ucloud-im/internal/ident"
)

// Names are what can be guessed of a person's names from a UCloud user name (contract 03 section 3.1).
type Names struct {
	First, Last string // as the user name spells them; Last is empty for a single name
	UCloud      string // the part before "#"
}

// maxSuggested leaves room for two digits: login names have at most 32 characters on some systems.
const maxSuggested = 28

// fallback is the suggestion for names of which no ASCII letter is left.
const fallback = "user"

// SplitNames takes a user name apart: the part before "#", without dots, at capital letters and blanks. Dashes and
// apostrophes bind what follows them, and so do capitals in a row.
func SplitNames(user ident.UCloudUser) Names {
	text, _, _ := strings.Cut(string(user), "#")
	n := Names{UCloud: text}
	var parts []string
	var part []rune
	end := func() {
		if len(part) > 0 {
			parts = append(parts, string(part))
		}
		part = nil
	}
	var before rune
	letters := []rune(strings.ReplaceAll(norm.NFC.String(text), ".", ""))
	for i, r := range letters {
		hump := i+1 < len(letters) && unicode.IsLower(letters[i+1])
		switch {
		case unicode.IsSpace(r):
			end()
		case unicode.IsUpper(r) && !binds(before) && (hump || !unicode.IsUpper(before)):
			end()
			part = append(part, r)
		default:
			part = append(part, r)
		}
		before = r
	}
	end()
	switch len(parts) {
	case 0:
	case 1:
		n.First = parts[0]
	default:
		n.First, n.Last = parts[0], parts[len(parts)-1]
	}
	return n
}

func binds(r rune) bool { return r == '-' || r == '\'' || r == '’' }

// FirstInitialLastName is the suggestion of identityManagement.naming.users "firstInitialLastName".
func FirstInitialLastName(n Names) string {
	if n.Last == "" {
		return Clean(n.First)
	}
	first := ascii(n.First)
	return Clean(first[:min(1, len(first))] + ascii(n.Last))
}

// Clean makes the name of an account out of a text: small ASCII letters, digits and "_", not beginning with a digit, at
// most 28.
func Clean(s string) string {
	s = ascii(s)
	if s == "" {
		return fallback
	}
	if s[0] < 'a' || s[0] > 'z' {
		s = "u" + s
	}
	return s[:min(len(s), maxSuggested)]
}

// ascii transliterates and keeps word characters.
func ascii(s string) string {
	var b strings.Builder
	for _, r := range norm.NFKD.String(strings.ReplaceAll(s, ".", "")) {
		r = unicode.ToLower(r)
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_':
			b.WriteRune(r)
		default:
			b.WriteString(transliterated[r])
		}
	}
	return b.String()
}

// transliterated are letters that do not fall apart into an ASCII letter and a mark.
var transliterated = map[rune]string{
	'ß': "ss", 'æ': "ae", 'œ': "oe", 'ø': "o", 'đ': "d", 'ð': "d", 'þ': "th", 'ł': "l", 'ħ': "h", 'ı': "i", 'ŋ': "ng", 'ĸ': "k",
	'ŧ': "t", 'ſ': "s", 'ə': "e",
	// Greek (ELOT 743) and Cyrillic, letter by letter.
	'α': "a", 'β': "v", 'γ': "g", 'δ': "d", 'ε': "e", 'ζ': "z", 'η': "i", 'θ': "th", 'ι': "i", 'κ': "k", 'λ': "l", 'μ': "m", 'ν': "n",
	'ξ': "x", 'ο': "o", 'π': "p", 'ρ': "r", 'σ': "s", 'ς': "s", 'τ': "t", 'υ': "y", 'φ': "f", 'χ': "ch", 'ψ': "ps", 'ω': "o",
	'а': "a", 'б': "b", 'в': "v", 'г': "g", 'д': "d", 'е': "e", 'ж': "zh", 'з': "z", 'и': "i", 'к': "k", 'л': "l", 'м': "m", 'н': "n",
	'о': "o", 'п': "p", 'р': "r", 'с': "s", 'т': "t", 'у': "u", 'ф': "f", 'х': "kh", 'ц': "ts", 'ч': "ch", 'ш': "sh", 'щ': "shch",
	'ы': "y", 'э': "e", 'ю': "yu", 'я': "ya", 'і': "i", 'є': "ye", 'ґ': "g", 'ђ': "d", 'ј': "j", 'љ': "lj", 'њ': "nj", 'ћ': "c", 'џ': "dz",
}
