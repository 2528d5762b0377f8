package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// productNameLimit is the longest name of a product or category.
const productNameLimit = 100

// sharesProduct is the storage product of drives that UCloud makes for shares (contract 13 section 1.2). A file system's
// product has the name of the file system, so none may be called that.
const sharesProduct = "share"

var currencyForm = regexp.MustCompile(`^[A-Z][A-Z0-9]{2,7}$`)

func (l *loader) checkStorage() {
	for name, fs := range l.config.Services.FileSystems.All() {
		key := "services.fileSystems." + name
		if name == sharesProduct {
			l.errorf("X-07", key, "choose another name", "the product name %q is reserved for shares", name)
		}
		l.checkManagement(key, fs)
		l.checkStoragePayment(key+".payment", &fs.Payment)
		for locator, loc := range fs.DriveLocators.All() {
			l.checkLocator(key+".driveLocators."+locator, loc)
		}
		if fs.Management != nil && fs.Management.GPFS != nil {
			l.checkGPFS(key+".management.gpfs", fs)
		}
		if fs.UserDrives != nil {
			l.checkUserDrives(key+".userDrives", fs)
		}
	}
	l.checkPrimary()
}

// checkUserDrives checks that the drives of users have a place.
func (l *loader) checkUserDrives(key string, fs *FileSystem) {
	for _, name := range fs.UserDrives.Locators {
		switch loc, ok := fs.DriveLocators.Get(name); {
		case !ok:
			l.errorf("X-05", key+".locators", "name one of driveLocators", "there is no drive locator %q", name)
		case loc.ReadOnly || loc.Hidden:
			l.errorf("X-05", key+".locators", "name one in whose drives users may write", "nothing can be made in the drives of %q", name)
		}
	}
	if d := fs.UserDrives.Directory; d == "." || d == ".." || d == "Trash" || strings.ContainsFunc(d, func(r rune) bool { return r == '/' || r < ' ' || r == 0x7f }) || len(d) > 255 {
		l.errorf("X-05", key+".directory", "use one name, such as Drives", "%q cannot be the name of a folder for drives", d)
	}
}

// checkManagement checks that managed providers say how, and unmanaged ones do not.
func (l *loader) checkManagement(key string, fs *FileSystem) {
	m := fs.Management
	switch {
	case m == nil && !l.config.Services.Unmanaged:
		l.errorf("X-03", key+".management", "add management: { type: Posix }, or set services.unmanaged: true", "a managed provider says how directories and quotas are made")
	case m == nil:
	case l.config.Services.Unmanaged:
		l.errorf("X-03", key+".management", "remove it, or remove services.unmanaged", "an unmanaged provider has no quota management")
	}
	if m == nil {
		return
	}
	for _, s := range []struct {
		typ, name string
		present   bool
	}{{ManagementScripted, "scripted", m.Scripted != nil}, {ManagementGPFS, "gpfs", m.GPFS != nil}} {
		switch {
		case m.Type == s.typ && !s.present && !(s.name == "gpfs" && !l.config.Role.readsSecrets()):
			l.errorf("CFG-5", key+".management."+s.name, "add "+s.name, "management type %s needs the section %q", s.typ, s.name)
		case m.Type != s.typ && m.Type != "" && s.present:
			l.warnf("CFG-5", key+".management."+s.name, "remove it, or change the type", "this section has no effect: the type is %s", m.Type)
		}
	}
}

func (l *loader) checkStoragePayment(key string, p *StoragePayment) {
	switch p.Type {
	case PaymentResource:
		if p.Unit == "" && !l.given(key+".unit") {
			l.errorf("X-08", key, "add unit: GB | TB | PB | EB | GiB | TiB | PiB | EiB", "payment type Resource needs a unit")
		}
		l.forbid("X-08", key, "payment type Resource has no price", map[string]bool{"price": p.Price != 0, "currency": p.Currency != ""})
	case PaymentMoney:
		if p.Price == 0 && !l.given(key+".price") {
			l.errorf("X-08", key, "add price", "payment type Money needs a price")
		}
		l.checkCurrency(key, p.Currency)
	}
}

func (l *loader) checkCurrency(key, currency string) {
	switch {
	case currency == "" && !l.given(key+".currency"):
		l.errorf("X-08", key, "add currency, such as DKK", "payment type Money needs a currency")
	case !currencyForm.MatchString(currency):
		l.errorf("X-08", key+".currency", "write capital letters, such as DKK", "%s is not a currency", quote(currency))
	}
}

// forbid reports keys that are given although they have no meaning.
func (l *loader) forbid(rule, key, why string, given map[string]bool) {
	for name, is := range given {
		if is {
			l.errorf(rule, key+"."+name, "remove "+name, "%s", why)
		}
	}
}

func (l *loader) checkLocator(key string, loc *DriveLocator) {
	unmanaged := l.config.Services.Unmanaged
	if loc.Entity == "" && !unmanaged && !l.given(key+".entity") {
		l.errorf("CFG-5", key, "add entity: User | Project | MemberFiles", "a managed provider says whose drive this is")
	}
	switch {
	case loc.Pattern.IsSet() && loc.Script.IsSet():
		l.errorf("X-05", key, "give exactly one of pattern and script", "the locator has both pattern and script")
	case !l.given(key+".pattern") && !l.given(key+".script"):
		l.errorf("X-05", key, "give exactly one of pattern and script", "the locator has neither pattern nor script")
	}
	l.checkVariables(key+".pattern", loc.Pattern, loc.Entity)
	l.checkVariables(key+".title", loc.Title, loc.Entity)
	l.checkVariables(key+".ownership.owner", loc.Ownership.Owner, loc.Entity)
	l.checkVariables(key+".ownership.group", loc.Ownership.Group, loc.Entity)
	l.checkRoots(key, loc)
	if len(loc.Title.String()) > 100 && len(loc.Title.Variables()) == 0 {
		l.errorf("CFG-5", key+".title", "shorten it", "the title has more than 100 characters")
	}
	switch {
	case loc.FreeQuota != nil && loc.Entity != EntityUser:
		l.errorf("CFG-5", key+".freeQuota", "remove it", "a free quota is for entity User only")
	case loc.FreeQuota == nil && loc.Entity == EntityUser && !unmanaged && !l.given(key+".freeQuota"):
		l.errorf("CFG-5", key, "add freeQuota, 0 if there is none", "a locator for users needs freeQuota")
	}
}

// given tells whether the key is in the file. A value that is empty although it was given could not be used, which was
// reported already.
func (l *loader) given(key string) bool { return l.config.isSet("config", key) }

// checkVariables checks that each variable has a value for the kind of owner.
func (l *loader) checkVariables(key string, p Pattern, entity string) {
	var foreign []string
	switch entity {
	case EntityUser:
		foreign = locatorProject
	case EntityProject:
		foreign = locatorUser
	}
	if !l.given(key) {
		return // a default
	}
	for _, v := range p.Variables() {
		if slices.Contains(foreign, v) {
			l.errorf("X-05", key, "use one of: "+strings.Join(entityVariables(entity), ", "), "the variable %q has no value for entity %s", v, entity)
		}
	}
}

func entityVariables(entity string) []string {
	switch entity {
	case EntityUser:
		return slices.Concat(locatorAlways, locatorUser)
	case EntityProject:
		return slices.Concat(locatorAlways, locatorProject)
	}
	return slices.Concat(locatorAlways, locatorUser, locatorProject)
}

// forbiddenRoots are directories that are never a drive or the root of drives, with everything below them. The
// root directory is the exception: below it is everything.
var forbiddenRoots = []Path{"/", "/etc", "/root", "/proc", "/sys", "/dev", "/boot"}

func (l *loader) checkRoots(key string, loc *DriveLocator) {
	explicit := l.given(key + ".allowedRoots")
	if loc.Script.IsSet() && !explicit {
		l.errorf("X-05", key, "add allowedRoots", "a locator with a script says below which directories the script's answers must lie")
	}
	where := key + ".allowedRoots"
	if !explicit {
		where = key + ".pattern"
	}
	for _, root := range loc.AllowedRoots {
		for _, f := range forbiddenRoots {
			if root == f || f != "/" && strings.HasPrefix(string(root), string(f)+"/") {
				l.errorf("X-05", where, "use a directory that holds nothing but users' data", "%s cannot be the root of drives", root)
			}
		}
	}
	if !loc.Pattern.IsSet() {
		return
	}
	text := loc.Pattern.String()
	fixed := fixedDirectory(loc.Pattern)
	switch {
	case !strings.HasPrefix(text, "/") || fixed == "":
		l.errorf("X-05", key+".pattern", "start with a fixed directory, such as /home/#{localUsername}", "the pattern does not give an absolute path below a fixed directory")
		return
	case slices.Contains(strings.Split(text, "/"), ".."):
		l.errorf("X-05", key+".pattern", "write the path without ..", "the pattern contains ..")
		return
	case fixed == "/home" && len(loc.Pattern.Variables()) == 0:
		l.errorf("X-05", key+".pattern", "use /home/#{localUsername}", "/home without a variable would show every user's home to everybody")
		return
	}
	below := slices.ContainsFunc(loc.AllowedRoots, func(r Path) bool { return fixed == r || strings.HasPrefix(string(fixed), string(r)+"/") })
	if explicit && !below && len(loc.AllowedRoots) > 0 {
		l.errorf("X-05", key+".pattern", "correct the pattern or allowedRoots", "the pattern starts with %s, which lies below none of allowedRoots", fixed)
	}
}

// checkGPFS checks that mappings and locators are the same set.
func (l *loader) checkGPFS(key string, fs *FileSystem) {
	g := fs.Management.GPFS
	if l.config.Role.readsSecrets() && fs.Management.Type == ManagementGPFS {
		if g.Host == nil && !l.given(key+".host") {
			l.errorf("CFG-5", key, "add host", "the address of the GPFS server is missing")
		}
		for name := range fs.DriveLocators.All() {
			if _, ok := g.Mapping.Get(name); !ok {
				l.errorf("X-06", key+".mapping", "add mapping."+name+" with fileSystem, parentFileSet and fileSetPattern", "no mapping for drive locator %q", name)
			}
		}
	}
	for name, m := range g.Mapping.All() {
		loc, ok := fs.DriveLocators.Get(name)
		if !ok {
			l.errorf("X-06", key+".mapping."+name, "remove the mapping or add the locator", "there is no drive locator %q", name)
			continue
		}
		l.checkVariables(key+".mapping."+name+".fileSetPattern", m.FileSetPattern, loc.Entity)
	}
	if !g.VerifyTLS {
		l.warnf("CFG-5", key+".verifyTls", "set caFile instead", "anybody on the network can pretend to be the GPFS server")
	}
}

// checkPrimary checks that at most one locator of each kind of owner is marked as primary, and that jobs have a drive to
// run in.
func (l *loader) checkPrimary() {
	first := map[string]string{}
	serves := map[string]bool{}
	for name, fs := range l.config.Services.FileSystems.All() {
		for locator, loc := range fs.DriveLocators.All() {
			key := fmt.Sprintf("services.fileSystems.%s.driveLocators.%s", name, locator)
			for _, entity := range []string{EntityUser, EntityProject} {
				if !loc.IsPrimaryCandidate(entity) {
					continue
				}
				serves[entity] = true
				if !loc.Primary {
					continue
				}
				if other, ok := first[entity]; ok {
					l.errorf("X-12", key+".primary", "mark one of them", "%s is already the primary drive of entity %s", other, entity)
					break
				}
				first[entity] = key
			}
		}
	}
	if l.config.Services.Slurm == nil {
		return // nobody needs a folder for jobs
	}
	for _, entity := range []string{EntityUser, EntityProject} {
		if !serves[entity] {
			l.errorf("X-12", "services.fileSystems", "add a drive locator for entity "+entity, "no drive locator serves entity %s, so its jobs have no folder", entity)
		}
	}
}
