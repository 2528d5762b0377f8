package eventwire

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

const (
	examplesDir  = "../../providerapi/testdata/examples/events"
	recordedFile = "../../providerapi/testdata/recordings/11-event-stream.md"
)

// vector is a frame of the contract's examples.
type vector struct {
	Direction string
	Fields    struct {
		Op         int
		ReplayFrom int64
		Flags      uint64
		Token      string
		Username   ident.UCloudUser
		Messages   []vectorRecord
	}
	Hex string
}

type vectorRecord struct {
	Op                                                int
	ProjectRef, CategoryRef, UserRef, WorkspaceRef    uint32
	ModifiedAt, LastSignificantUpdateAt               providerapi.Millis
	Project                                           providerapi.Project
	Category                                          providerapi.ProductCategory
	Username                                          string
	CombinedQuota, TotalUsage, Flags, LocalRetiredUse int64
}

func (v vectorRecord) record(t *testing.T) Record {
	switch v.Op {
	case opUser:
		return User{Ref: v.UserRef, Username: v.Username}
	case opProject:
		return Project{Ref: v.ProjectRef, ModifiedAt: v.ModifiedAt, Project: v.Project}
	case opCategory:
		return Category{Ref: v.CategoryRef, Category: v.Category}
	case opWallet:
		return Wallet{
			Workspace: v.WorkspaceRef, Category: v.CategoryRef, CombinedQuota: v.CombinedQuota, TotalUsage: v.TotalUsage,
			Locked: v.Flags&1 != 0, IsProject: v.Flags&2 != 0, LastUpdate: v.LastSignificantUpdateAt,
		}
	}
	t.Fatalf("unknown op %d", v.Op)
	return nil
}

func TestVectors(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(examplesDir + "/*.json")
	if err != nil || len(files) != 4 {
		t.Fatalf("%d example files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var v vector
			if err := json.Unmarshal(raw, &v); err != nil {
				t.Fatal(err)
			}
			message, err := hex.DecodeString(v.Hex)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case v.Direction == "UCloud/Core to provider":
				var want []Record
				for _, r := range v.Fields.Messages {
					want = append(want, r.record(t))
				}
				got, err := Decode(message, true)
				if err != nil || !reflect.DeepEqual(got, want) {
					t.Fatalf("decoded %+v, %v\nwant    %+v", got, err, want)
				}
			case v.Fields.Op == opAuth:
				if got := AppendAuth(nil, v.Fields.ReplayFrom, v.Fields.Flags, v.Fields.Token); hex.EncodeToString(got) != v.Hex {
					t.Fatalf("encoded %x", got)
				}
				if v.Fields.Flags != FlagIncludeRetired {
					t.Fatal("the flag is another")
				}
			case v.Fields.Op == opReplayUser:
				if got := AppendReplayUser(nil, v.Fields.Username); hex.EncodeToString(got) != v.Hex {
					t.Fatalf("encoded %x", got)
				}
			}
		})
	}
}

// recordedMessages are the messages of the recording that stand there in hex, with the members of their last wallet.
func recordedMessages(t *testing.T) (messages [][]byte, wallets []map[string]any) {
	t.Helper()
	raw, err := os.ReadFile(recordedFile)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```\n((?:04|01)[0-9a-f]+)\n```\n\n```json\n(.*?)\n```")
	for _, m := range block.FindAllStringSubmatch(string(raw), -1) {
		b, err := hex.DecodeString(m[1])
		if err != nil {
			t.Fatal(err)
		}
		var last map[string]any
		for dec := json.NewDecoder(strings.NewReader(m[2])); dec.More(); {
			last = nil
			if err := dec.Decode(&last); err != nil {
				t.Fatal(err)
			}
		}
		messages, wallets = append(messages, b), append(wallets, last)
	}
	return messages, wallets
}

func TestRecording(t *testing.T) {
	t.Parallel()
	messages, wallets := recordedMessages(t)
	if len(messages) < 10 {
		t.Fatalf("only %d messages found", len(messages))
	}
	for i, m := range messages {
		records, err := Decode(m, false)
		if err != nil {
			t.Fatalf("%x: %v", m, err)
		}
		w, ok := records[len(records)-1].(Wallet)
		if !ok {
			t.Fatalf("%x: the last record is %T", m, records[len(records)-1])
		}
		want := wallets[i]
		flags := int(want["flags u32"].(float64))
		if float64(w.CombinedQuota) != want["combinedQuota s64"] || float64(w.TotalUsage) != want["totalUsage s64"] ||
			float64(w.LastUpdate) != want["lastUpdate s64 (ms)"] || float64(w.Workspace) != want["workspaceRef u32"] ||
			float64(w.Category) != want["categoryRef u32"] || w.Locked != (flags&1 != 0) || w.IsProject != (flags&2 != 0) {
			t.Errorf("decoded %+v, recorded %v", w, want)
		}
		// Read with the other wallet length the message does not fit.
		if _, err := Decode(m, true); !errors.Is(err, ErrProtocol) {
			t.Errorf("%x was read with the wrong wallet length", m)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	user := append([]byte{opUser, 0, 0, 0, 0}, 0, 0, 0, 1, 'a')
	for name, m := range map[string][]byte{
		"empty":                {},
		"opcode of ours":       {opAuth, 0},
		"replay opcode":        AppendReplayUser(nil, "a"),
		"unknown opcode":       {6},
		"unknown after a good": append(append([]byte{}, user...), 77),
		"cut reference":        user[:4],
		"cut length":           user[:8],
		"cut text":             user[:9],
		"length beyond all":    {opUser, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 'a'},
		"not utf-8":            {opUser, 0, 0, 0, 0, 0, 0, 0, 1, 0xff},
		"category no json":     append([]byte{opCategory, 0, 0, 0, 0, 0, 0, 0, 1}, '{'),
		"project no json":      append([]byte{opProject, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, '{'),
		"cut wallet":           append([]byte{opWallet}, make([]byte, 43)...),
	} {
		if got, err := Decode(m, true); !errors.Is(err, ErrProtocol) || got != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := Decode(append([]byte{opWallet}, make([]byte, 44)...), true); err != nil {
		t.Error(err)
	}
	if _, err := Decode(append([]byte{opWallet}, make([]byte, 36)...), false); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob(examplesDir + "/*.json")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		var v vector
		if err := json.Unmarshal(raw, &v); err != nil {
			f.Fatal(err)
		}
		message, _ := hex.DecodeString(v.Hex)
		f.Add(message, true)
		f.Add(message, false)
	}
	f.Fuzz(func(t *testing.T, m []byte, retired bool) {
		records, err := Decode(m, retired)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		// Every record takes at least one byte per field, so their number is bounded by the message.
		if len(records) == 0 || len(records) > len(m)/9+1 {
			t.Fatalf("%d records in %d bytes", len(records), len(m))
		}
	})
}
