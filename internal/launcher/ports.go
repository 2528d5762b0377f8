package launcher

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// ports hands out listeners. A port is never given to another uid within the server's life: a process of its former
// holder may still have the old socket, and could listen on it again in a moment when we do not (experiments: revocation
// of a listener is not final).
//
// Ports increase. When half of the range has been used, users get a port back that they had before, so that the other
// half lasts for users who have none yet.
type ports struct {
	first, last int

	mu    sync.Mutex // guards the fields below; held over bind and listen, which do not block
	next  int
	owner map[int]ident.UID // every port that was ever given out
	had   map[ident.UID][]int
}

func newPorts(first, last int) (*ports, error) {
	if first < 1024 || last > 65535 || first > last {
		return nil, fmt.Errorf("port range %d-%d: must lie in 1024-65535", first, last)
	}
	return &ports{first: first, last: last, next: first, owner: map[int]ident.UID{}, had: map[ident.UID][]int{}}, nil
}

// take binds the next port for uid.
func (p *ports) take(uid ident.UID) (*listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next > p.first+(p.last-p.first)/2 {
		for _, port := range p.had[uid] {
			if l, err := listen(port); err == nil {
				return l, nil
			} else if !skippable(err) {
				return nil, err
			}
		}
	}
	for ; p.next <= p.last; p.next++ {
		if _, given := p.owner[p.next]; given {
			continue
		}
		l, err := listen(p.next)
		if skippable(err) {
			continue // routine: the range is also used for outgoing connections; or a squatter, who gets nothing
		}
		if err != nil {
			return nil, err
		}
		p.recordLocked(p.next, uid)
		p.next++
		return l, nil
	}
	// Wrap: ports that were busy when their turn came.
	for port := p.first; port <= p.last; port++ {
		if owner, given := p.owner[port]; given && owner != uid {
			continue
		}
		l, err := listen(port)
		if skippable(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p.recordLocked(port, uid)
		return l, nil
	}
	return nil, failure.New(failure.NoInstance,
		"There is no free port for your instance, please tell the operators of this provider")
}

// adopt records a port that an instance of an earlier server life holds.
func (p *ports) adopt(port int, uid ident.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recordLocked(port, uid)
	if port >= p.next && port <= p.last {
		p.next = port + 1
	}
}

func (p *ports) recordLocked(port int, uid ident.UID) {
	if _, given := p.owner[port]; !given {
		p.had[uid] = append(p.had[uid], port)
	}
	p.owner[port] = uid
}

func skippable(err error) bool {
	return errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EACCES)
}
