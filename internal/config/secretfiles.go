package config

// ServerFile is server.yml: what only the server needs (contract 40 section 9).
type ServerFile struct {
	Version      int             `key:"version" default:"1" doc:"Version of the file's form."`
	RefreshToken SecretRef       `key:"refreshToken" need:"yes" doc:"Refresh token of the provider."`
	Database     *ServerDatabase `key:"database" need:"for database.type postgres" doc:"Login of the PostgreSQL database."`
}

// ServerDatabase is the login of a PostgreSQL database.
type ServerDatabase struct {
	Host              *Endpoint `key:"host" port:"5432" need:"yes" reload:"restart" doc:"Host and port, or the directory of a Unix socket."`
	Database          string    `key:"database" need:"yes" flags:"nonempty" reload:"restart" doc:"Name of the database."`
	Username          string    `key:"username" need:"yes" flags:"nonempty" reload:"restart" doc:"User."`
	Password          SecretRef `key:"password" defaultDoc:"none" doc:"Password; special characters are fine."`
	SSLMode           string    `key:"sslMode" enum:"disable,require,verify-ca,verify-full" reload:"restart" defaultDoc:"disable for loopback and Unix sockets, otherwise verify-full" doc:"TLS to the database (SEC-7)."`
	CAFile            Path      `key:"caFile" exists:"file" flags:"relative" defaultDoc:"the system's trust store" doc:"Trust anchors, PEM."`
	ClientCertificate Path      `key:"clientCertificate" exists:"file" flags:"relative" defaultDoc:"none" doc:"Client certificate, PEM."`
	ClientKey         SecretRef `key:"clientKey" defaultDoc:"none" doc:"Key of the client certificate, PEM."`
}

// SecretsFile is secrets.yml: logins of other services.
type SecretsFile struct {
	Version int         `key:"version" default:"1" doc:"Version of the file's form."`
	FreeIPA *Login      `key:"freeipa" defaultDoc:"none" doc:"Login of FreeIPA."`
	LDAP    *LDAPSecret `key:"ldap" defaultDoc:"none" doc:"Login of the directory."`
	OIDC    *OIDCSecret `key:"oidc" defaultDoc:"none" doc:"Client secret of the identity provider."`
	GPFS    Map[Login]  `key:"gpfs" keys:"category" defaultDoc:"none" doc:"Logins of GPFS by storage product."`
}

// Login is a user name with a password.
type Login struct {
	Username string    `key:"username" need:"yes" flags:"nonempty" doc:"User."`
	Password SecretRef `key:"password" need:"yes" doc:"Password."`
}

// LDAPSecret is the password of the directory.
type LDAPSecret struct {
	BindPassword SecretRef `key:"bindPassword" need:"yes" doc:"Password of bindDn."`
}

// OIDCSecret is the client secret of the identity provider.
type OIDCSecret struct {
	ClientSecret SecretRef `key:"clientSecret" need:"yes" doc:"Client secret."`
}
