package roleuser

import (
	"context"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/intentclient"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// intentServer is the server as package intentclient sees it.
type intentServer struct{ host }

// Keys implements [intentclient.Server].
func (s intentServer) Keys(ctx context.Context) (ipcapi.IntentKeySet, error) {
	server, err := s.Server()
	if err != nil {
		return ipcapi.IntentKeySet{}, err
	}
	return ipc.Invoke(ctx, server, ipcapi.IntentKeys, ipcapi.Empty{})
}

// Seen implements [intentclient.Server].
func (s intentServer) Seen(ctx context.Context, counts ipcapi.IntentCounts) error {
	server, err := s.Server()
	if err != nil {
		return err
	}
	_, err = ipc.Invoke(ctx, server, ipcapi.IntentSeen, counts)
	return err
}

// startIntents makes the part that asks for signed intents.
func startIntents(a host) *intentclient.Client {
	start := a.Start()
	return intentclient.New(intentclient.Options{
		Provider: start.Provider, User: start.User, Server: intentServer{a}, Log: a.Log(), Settings: start.Intents,
		Drive: func(ctx context.Context, id ident.DriveID) (ipcapi.FoundDrive, error) {
			server, err := a.Server()
			if err != nil {
				return ipcapi.FoundDrive{}, err
			}
			return ipc.Invoke(ctx, server, ipcapi.DriveFind, ipcapi.DriveRef{ID: id})
		},
	})
}

// tallyTimeout bounds the last handing in of numbers.
const tallyTimeout = time.Second
