package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/httpx"
	"ucloud-im/internal/providerapi"
)

// maxBrandingFile bounds each image in bytes (contract 40 section 3).
const maxBrandingFile = 2 << 20

// BrandingConfig is how the operator describes the provider (provider.branding). Images are paths of files; texts are
// the content, Markdown where Core takes Markdown.
type BrandingConfig struct {
	Title            string
	ShortTitle       string
	ShortDescription string
	Description      string // Markdown
	URL              string
	Logo             string // path, or empty
	Sections         []BrandingSection
	Products         []BrandingProduct
}

// BrandingSection is a text with an optional image.
type BrandingSection struct {
	Description string // Markdown
	Image       string // path, or empty
}

// BrandingProduct describes a product category.
type BrandingProduct struct {
	Category         string
	ShortDescription string
	Section          BrandingSection
}

// Branding is what Core shows about the provider, with its images read and named. It is immutable.
type Branding struct {
	info   providerapi.Branding
	images map[string]image
}

type image struct {
	contentType string
	data        []byte
}

// NewBranding reads the images. Each is named by a hash of its content, so that the names are stable and can be cached
// for ever, and announced as an absolute URL below selfPublic: Core would complete a relative one with its own address
// of the provider, which browsers may not reach (contract 33 section 4).
func NewBranding(provider, selfPublic string, c BrandingConfig) (*Branding, error) {
	b := &Branding{images: make(map[string]image)}
	add := func(path string) (*string, error) {
		if path == "" {
			return nil, nil
		}
		name, err := b.addFile(path)
		if err != nil {
			return nil, fmt.Errorf("branding image %s: %w", path, err)
		}
		u := selfPublic + "/ucloud/" + provider + "/provider/branding/image?name=" + url.QueryEscape(name)
		return &u, nil
	}
	b.info = providerapi.Branding{
		ID: provider, Title: c.Title, ShortTitle: c.ShortTitle, ShortDescription: c.ShortDescription,
		Description: c.Description, URL: c.URL,
	}
	var failed error // all images that could not be read
	section := func(s BrandingSection) providerapi.BrandingSection {
		u, err := add(s.Image)
		failed = errors.Join(failed, err)
		return providerapi.BrandingSection{Description: s.Description, Image: u}
	}
	b.info.Logo, failed = add(c.Logo)
	for _, s := range c.Sections {
		b.info.Sections = append(b.info.Sections, section(s))
	}
	for _, p := range c.Products {
		b.info.ProductDescriptions = append(b.info.ProductDescriptions, providerapi.BrandingProductDetail{
			Category: p.Category, ShortDescription: p.ShortDescription, Section: section(p.Section),
		})
	}
	if failed != nil {
		return nil, failed
	}
	return b, nil
}

func (b *Branding) addFile(path string) (name string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBrandingFile+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxBrandingFile {
		return "", fmt.Errorf("larger than %d bytes", maxBrandingFile)
	}
	contentType, ext := sniff(data)
	if contentType == "" {
		return "", errors.New("not a PNG, JPEG, SVG or WebP image")
	}
	sum := sha256.Sum256(data)
	name = hex.EncodeToString(sum[:16]) + ext
	b.images[name] = image{contentType, data}
	return name, nil
}

// sniff recognises the image types that may be served, by content: the file's name is no evidence.
func sniff(data []byte) (contentType, ext string) {
	switch ct := http.DetectContentType(data); ct {
	case "image/png":
		return ct, ".png"
	case "image/jpeg":
		return ct, ".jpg"
	case "image/webp":
		return ct, ".webp"
	}
	dec := xml.NewDecoder(bytes.NewReader(data))
	for {
		tok, err := dec.Token()
		if err != nil {
			return "", ""
		}
		if el, ok := tok.(xml.StartElement); ok {
			if el.Name.Local == "svg" {
				return "image/svg+xml", ".svg"
			}
			return "", ""
		}
	}
}

func (h *Handler) brandingInfo(w http.ResponseWriter, r *http.Request) error {
	info := providerapi.Branding{ID: h.o.Provider} // nothing configured: empty texts and lists
	if b := h.o.Branding(); b != nil {
		info = b.info
	}
	httpx.WriteJSON(w, r, http.StatusOK, info)
	return nil
}

// brandingImage serves an image out of a fixed table; the name is never a path. The file is the operator's, but an SVG
// can hold scripts, which must not run with our origin when somebody opens the address itself.
func (h *Handler) brandingImage(w http.ResponseWriter, r *http.Request) error {
	b := h.o.Branding()
	if b == nil {
		return failure.New(failure.NotFound, "There is no such image")
	}
	img, ok := b.images[r.URL.Query().Get("name")]
	if !ok {
		return failure.New(failure.NotFound, "There is no such image")
	}
	hd := w.Header()
	hd.Set("Content-Type", img.contentType)
	hd.Set("X-Content-Type-Options", "nosniff")
	hd.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox")
	hd.Set("Cross-Origin-Resource-Policy", "cross-origin") // UCloud's pages show it
	hd.Set("Cache-Control", "public, max-age=31536000, immutable")
	hd.Set("Content-Length", strconv.Itoa(len(img.data)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(img.data) // the client may be gone
	}
	return nil
}
