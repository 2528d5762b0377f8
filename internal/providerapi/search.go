package providerapi

import "encoding/json"

// SearchCall is the name of the streaming search of a provider, as it stands in the first message on the WebSocket
// (contract 13 section 3.1).
func SearchCall(provider string) string { return "files.provider." + provider + ".streamingSearch" }

// StreamRequest is the first message on a WebSocket of framed JSON (contract 00 section 7).
type StreamRequest struct {
	Call         string          `json:"call"`
	StreamID     string          `json:"streamId"`
	Payload      json.RawMessage `json:"payload"`
	SignedIntent string          `json:"signedIntent"` // of the user's browser; usually absent
}

// FilesSearch is the payload of a streaming search. The drive is named by the path alone.
type FilesSearch struct {
	Query         string            `json:"query"`
	Owner         ResourceOwner     `json:"owner"`
	Flags         FileFlags         `json:"flags"`
	Category      CategoryReference `json:"category"`
	CurrentFolder *string           `json:"currentFolder"`
}

// The types of answers to a search.
const (
	SearchResult = "result"
	SearchEnd    = "end_of_results"
)

// SearchMessage is one answer to a search.
type SearchMessage struct {
	Type     string       `json:"type"`     // always "message"
	StreamID string       `json:"streamId"` // that of the request
	Payload  SearchAnswer `json:"payload"`
}

// SearchAnswer holds what was found since the last one. With the type [SearchEnd] there is no more to come.
type SearchAnswer struct {
	Type  string     `json:"type"`
	Batch List[File] `json:"batch"`
}
