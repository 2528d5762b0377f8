package jobsite

import (
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/software/softwarefile"
)

// Cache keeps the site of a configuration as JSON, so that the files of software are not read for each instance that starts. They
// are read again when the configuration is another one, and after services.slurm.modulesRefresh. The zero value is ready.
type Cache struct {
	mu       sync.Mutex
	config   *config.Config
	read     time.Time
	document []byte
	problems []softwarefile.Problem
}

// JSON is the site, for the start-up document of an instance. Problems with files are logged when they are new.
func (c *Cache) JSON(cfg *config.Config, log *slog.Logger) []byte {
	s := cfg.Services.Slurm
	if s == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.config == cfg && time.Since(c.read) < time.Duration(s.ModulesRefresh) {
		return c.document
	}
	site, problems := Of(cfg)
	document, err := json.Marshal(site)
	if err != nil {
		log.Error("the settings of job scripts cannot be written down", "error", err)
		return c.document
	}
	if !slices.Equal(problems, c.problems) {
		for _, p := range problems {
			log.Error("software of the provider was left out", "file", p.File, "problem", p.Message)
		}
	}
	c.config, c.read, c.document, c.problems = cfg, time.Now(), document, problems
	return document
}
