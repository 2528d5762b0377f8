package slurm

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseJobID(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]JobID{
		"730512":              {ID: 730512},
		"730602_7":            {ID: 730602, Task: "7"},
		"730602_[8-99]":       {ID: 730602, Task: "8-99"},
		"730602_[8-99%4]":     {ID: 730602, Task: "8-99%4"},
		"730602_[1,3,5]":      {ID: 730602, Task: "1,3,5"},
		"730602_[1-9:2%1]":    {ID: 730602, Task: "1-9:2%1"},
		"730602_[1,3,...]":    {ID: 730602, Task: "1,3,..."},
		"730700+0":            {ID: 730700, IsHet: true},
		"730700+12":           {ID: 730700, Het: 12, IsHet: true},
		"4294967295":          {ID: 4294967295},
		"9223372036854775807": {ID: 9223372036854775807},
	} {
		got, err := ParseJobID(text)
		if err != nil || got != want {
			t.Errorf("ParseJobID(%q) = %+v, %v", text, got, err)
		}
		if got.String() != text {
			t.Errorf("%q becomes %q", text, got)
		}
		if got.Leader() != (JobID{ID: want.ID}) {
			t.Errorf("leader of %q is %v", text, got.Leader())
		}
	}
	for _, text := range []string{
		"", "0", "00", "01", "-1", "+1", " 1", "1 ", "1.batch", "1_", "1_[]", "1_[", "1_]", "1_x", "1_-1", "1_[a]", "1_[1]]", "1_12345678901",
		"1+", "1+x", "1+01", "1+-1", "1_1+1", "99999999999999999999", "0_1", "0+1", "1\n", "x1", "1_[1;2]", "1_[1 2]",
	} {
		if got, err := ParseJobID(text); err == nil {
			t.Errorf("ParseJobID(%q) = %+v", text, got)
		}
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	got := arguments([]JobID{{ID: 5}, {ID: 6, Task: "8-99%4"}, {ID: 6, Task: "7"}, {ID: 7, IsHet: true}, {ID: 5}, {}})
	if got != "5,6,6_7,7+0" {
		t.Error(got)
	}
	for id, want := range map[JobID]string{{ID: 6, Task: "8-99%4"}: "6_[8-99]", {ID: 6, Task: "8"}: "6_8", {ID: 6}: "6"} {
		if got, err := exact(id); err != nil || got != want {
			t.Errorf("exact(%v) = %q, %v", id, got, err)
		}
	}
	// A list that Slurm has cut off must not become the whole array.
	for _, id := range []JobID{{ID: 6, Task: "1,3,..."}, {}, {Task: "1"}} {
		if got, err := exact(id); err == nil {
			t.Errorf("exact(%v) = %q", id, got)
		}
	}
}

func TestParseDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"00:03:12": 3*time.Minute + 12*time.Second, "1-00:00:00": 24 * time.Hour, "0:00": 0, "10:01": 10*time.Minute + time.Second,
		"2-03:04:05": 51*time.Hour + 4*time.Minute + 5*time.Second, "100:00:00": 100 * time.Hour, "5:00": 5 * time.Minute,
		"": 0, "INVALID": 0, "Partition_Limit": 0, "NOT_SET": 0, "N/A": 0,
	} {
		if got, unlimited, err := parseDuration(text); err != nil || got != want || unlimited {
			t.Errorf("parseDuration(%q) = %v, %v, %v", text, got, unlimited, err)
		}
	}
	if d, unlimited, err := parseDuration("UNLIMITED"); d != 0 || !unlimited || err != nil {
		t.Error(d, unlimited, err)
	}
	for _, text := range []string{"1", "1-", "-1", "1-1", "1-00:00", "00:60", "00:00:60", "0:0", "a:00", "1:00:00:00", "--", "00:-1", "1-2-00:00:00", "99999999-00:00:00", "99999999999999999999:00"} {
		if got, _, err := parseDuration(text); err == nil {
			t.Errorf("parseDuration(%q) = %v", text, got)
		}
	}
}

func TestParseTRES(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]TRES{
		"":                                       nil,
		"billing=128,cpu=128,mem=500G,node=2":    {"billing": 128, "cpu": 128, "mem": 500 << 30, "node": 2},
		"cpu=1,gres/gpu:a100=2,gres/gpu=2,mem=4": {"cpu": 1, "gres/gpu:a100": 2, "gres/gpu": 2, "mem": 4 << 20},
		"mem=1.50T":                              {"mem": 3 << 39},
		"mem=250M,cpu=2K":                        {"mem": 250 << 20, "cpu": 2048},
		"mem=2P,fs/disk=0":                       {"mem": 2 << 50, "fs/disk": 0},
	} {
		if got, err := ParseTRES(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseTRES(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"cpu", "=1", "cpu=", "cpu=x", "cpu=-1", "cpu=1,cpu=2", "mem=G", "mem=99999999999P", "mem=1e300G", "mem=NaN", "mem=Inf", ",", "cpu=1,"} {
		if got, err := ParseTRES(text); err == nil {
			t.Errorf("ParseTRES(%q) = %v", text, got)
		}
	}
}

func TestExpandNodes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "None assigned": "", "(null)": "",
		"c3": "c3", "c[1-3,7],gpu[01-04]": "c1 c2 c3 c7 gpu01 gpu02 gpu03 gpu04", "c1,c2": "c1 c2",
		"r[1-2]n[9-10]": "r1n9 r1n10 r2n9 r2n10", "n[098-101]x": "n098x n099x n100x n101x", "a-b.c[5]": "a-b.c5",
	} {
		if got, err := ExpandNodes(text, 100); err != nil || strings.Join(got, " ") != want {
			t.Errorf("ExpandNodes(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"c[1-3", "c]1[", "c[[1]]", "c[3-1]", "c[]", "c[a]", "c[1-]", ",", "c1,", "c[1-101]", "c[1-11]n[1-11]", "c[1-9999999999]", "c[1-99],d[1-99]",
		"-c1", "c 1", "c1;x", "c\n1", ".c", "c[1-99999999999999999999]",
	} {
		if got, err := ExpandNodes(text, 100); err == nil {
			t.Errorf("ExpandNodes(%q) = %v", text, got)
		}
	}
	if got, err := ExpandNodes("c[1-100]", 100); err != nil || len(got) != 100 {
		t.Error(len(got), err)
	}
}

func TestParseGRES(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]map[string]int64{
		"(null)": nil, "": nil, "gpu:2": {"gpu": 2},
		"gpu:a100:2(S:0-1),gpu:h100:4(S:0,1),shard:8": {"gpu": 6, "gpu:a100": 2, "gpu:h100": 4, "shard": 8},
		"odd,gpu:-1,x:y:z,:1":                         nil,
	} {
		if got := parseGRES(text); !reflect.DeepEqual(got, want) {
			t.Errorf("parseGRES(%q) = %v", text, got)
		}
	}
}

func FuzzJobID(f *testing.F) {
	for _, s := range []string{"730512", "730602_[8-99%4]", "730700+0", "0", "1_7"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseJobID(s)
		if err != nil {
			return
		}
		if id.ID == 0 {
			t.Errorf("%q has id 0", s)
		}
		again, err := ParseJobID(id.String())
		if err != nil || again.String() != id.String() || again.ID != id.ID {
			t.Errorf("%q becomes %q, %+v, %v", s, id, again, err)
		}
		if strings.ContainsAny(id.argument(), "[] \n") {
			t.Errorf("%q as an argument is %q", s, id.argument())
		}
	})
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"1-00:00:00", "10:01", "UNLIMITED", "Partition_Limit", "100:00:00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, unlimited, err := parseDuration(s); d < 0 || (err != nil || unlimited) && d != 0 {
			t.Errorf("%q is %v, %v, %v", s, d, unlimited, err)
		}
	})
}

func FuzzTRES(f *testing.F) {
	for _, s := range []string{"billing=128,cpu=128,mem=500G,node=2", "mem=1.50T", "gres/gpu:a100=2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tres, err := ParseTRES(s)
		for name, n := range tres {
			if n < 0 || name == "" || err != nil {
				t.Errorf("%q has %q=%d, %v", s, name, n, err)
			}
		}
		if _, err := rawTRES(s); err != nil && s == "" {
			t.Error(err)
		}
	})
}

func FuzzNodes(f *testing.F) {
	for _, s := range []string{"c[1-3,7],gpu[01-04]", "r[1-2]n[9-10]", "None assigned", "c[1-9999999]", "c[0001-2]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		names, err := ExpandNodes(s, 50)
		if err == nil && len(names) > 50 || err != nil && names != nil {
			t.Errorf("%q gives %d nodes, %v", s, len(names), err)
		}
		for _, n := range names {
			if !validHost(n) {
				t.Errorf("%q gives %q", s, n)
			}
		}
	})
}

func FuzzTables(f *testing.F) {
	f.Add("Account|User|RawShares|RawUsage|GrpTRESMins|GrpTRESRaw\n imtx||1|2||cpu=0,mem=8\n")
	f.Add(associationHeader + "\ndevcluster|imtx|nobody|||1||||||\n")
	f.Add("PartitionName=normal AllowQos=ALL State=UP MaxTime=04:00:00 TRESBillingWeights=CPU=1.0\n")
	f.Add(nodeHeader + "\nnormal|n1|mixed|64|256000|gpu:a100:2|epyc,a100\n")
	f.Add("ClusterName = x\n")
	f.Fuzz(func(t *testing.T, s string) {
		rows := 0
		err := parseTable("sshare", s, shareHeader, func(row []string) error {
			rows++
			_, err := share(row)
			return err
		})
		if err == nil && rows != strings.Count(s, "\n")-1 {
			t.Errorf("%d rows of %q", rows, s)
		}
		_ = parseTable("sacctmgr", s, associationHeader, func(row []string) error {
			_, err := association(row)
			return err
		})
		partitions, err := parsePartitions(s)
		if err == nil && slices.ContainsFunc(partitions, func(p Partition) bool { return p.Name == "" }) {
			t.Errorf("a partition without a name in %q", s)
		}
		_ = addNodes([]Partition{{Name: "normal"}}, s)
		_, _ = parseConfiguration(s)
		_ = parseGRES(s)
	})
}
