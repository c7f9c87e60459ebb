//! Certificates made with OpenSSL: psql accepts one if and only if laredo does, and a refused one
//! is named with the reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use laredo_postgres::ConnectionOptions;
use laredo_postgres::transport::SqlConnection;
use laredo_testkit::{Cluster, ClusterOptions, ClusterTls};

const RSA: &[&str] = &["rsa:2048"];
const P256: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
const P521: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:secp521r1"];
const ED25519: &[&str] = &["ed25519"];

/// Extensions of an authority, as in OpenSSL's own configuration.
const CA: &str = "basicConstraints = critical, CA:TRUE\nsubjectKeyIdentifier = hash";
const LOCALHOST: &str = "subjectAltName = DNS:localhost";

/// A folder in which OpenSSL makes certificates.
struct CertificateFolder(tempfile::TempDir);

/// The certificate to make.
struct CertificateWish<'a> {
    name: &'a str,
    key: &'a [&'a str],
    subject: &'a str,
    /// The extensions. Without any, the certificate is of X.509 version 1.
    extensions: Option<&'a str>,
    /// More arguments of `openssl x509`.
    arguments: &'a [&'a str],
}

impl<'a> CertificateWish<'a> {
    fn new(name: &'a str, key: &'a [&'a str], extensions: Option<&'a str>) -> CertificateWish<'a> {
        CertificateWish { name, key, subject: "/CN=localhost", extensions, arguments: &["-days", "30"] }
    }

    fn subject(self, subject: &'a str) -> Self {
        CertificateWish { subject, ..self }
    }
}

impl CertificateFolder {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) -> String {
        let done = Command::new("openssl").args(arguments).current_dir(self.0.path()).output().expect("openssl runs");
        let errors = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "openssl {arguments:?}: {errors}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Makes a key and a certificate that it signs itself.
    fn authority(&self, wish: &CertificateWish<'_>) {
        self.request(wish);
        self.sign(wish, &["-signkey", &format!("{}.key", wish.name)]);
    }

    /// Makes a key and a certificate that an authority signs.
    fn issue(&self, by: &str, wish: &CertificateWish<'_>) {
        self.request(wish);
        self.sign(wish, &["-CA", &format!("{by}.crt"), "-CAkey", &format!("{by}.key"), "-CAcreateserial"]);
    }

    fn request(&self, wish: &CertificateWish<'_>) {
        let (key, csr) = (format!("{}.key", wish.name), format!("{}.csr", wish.name));
        let fixed = ["req", "-new", "-nodes", "-subj", wish.subject, "-keyout", &key, "-out", &csr, "-newkey"];
        self.openssl(&[&fixed[..], wish.key].concat());
    }

    fn sign(&self, wish: &CertificateWish<'_>, by: &[&str]) {
        let (crt, csr, ext) =
            (format!("{}.crt", wish.name), format!("{}.csr", wish.name), format!("{}.ext", wish.name));
        let fixed = ["x509", "-req", "-in", &csr, "-out", &crt];
        let sign = |more: &[&str]| self.openssl(&[&fixed[..], wish.arguments, by, more].concat());
        let version = || self.openssl(&["x509", "-in", &crt, "-noout", "-text"]);
        let Some(extensions) = wish.extensions else {
            sign(&[]);
            if !version().contains("Version: 1 ") {
                // Newer versions of OpenSSL add extensions unless they are refused.
                fs::write(self.path(&ext), "subjectKeyIdentifier = none\nauthorityKeyIdentifier = none\n").unwrap();
                sign(&["-extfile", &ext]);
            }
            assert!(version().contains("Version: 1 "), "{}", version());
            return;
        };
        fs::write(self.path(&ext), extensions).unwrap();
        sign(&["-extfile", &ext]);
    }

    /// Makes a certificate with a validity of its own, in the time format of `openssl ca`.
    fn issue_valid_between(&self, by: &str, wish: &CertificateWish<'_>, from: &str, to: &str) {
        self.request(wish);
        let config = "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\nrand_serial = yes\nnew_certs_dir = .\n\
                      default_md = sha256\npolicy = p\nunique_subject = no\n[p]\ncommonName = supplied\n";
        fs::write(self.path("ca.cnf"), config).unwrap();
        fs::write(self.path("index.txt"), "").unwrap();
        let ext = format!("{}.ext", wish.name);
        fs::write(self.path(&ext), wish.extensions.unwrap_or_default()).unwrap();
        self.openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.cnf",
            "-cert",
            &format!("{by}.crt"),
            "-keyfile",
            &format!("{by}.key"),
            "-in",
            &format!("{}.csr", wish.name),
            "-out",
            &format!("{}.crt", wish.name),
            "-extfile",
            &ext,
            "-startdate",
            from,
            "-enddate",
            to,
        ]);
    }
}

/// A server whose certificate is replaced.
struct CertificateCase {
    cluster: Cluster,
    folder: CertificateFolder,
}

/// Neither accepts, or both do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Accepted,
    /// Refused with these words in laredo's message.
    Refused(&'static str),
    /// The name alone is refused, with these words: by `verify-full`, and not by `verify-ca`.
    OtherName(&'static str),
}
use Verdict::{Accepted, OtherName, Refused};

impl CertificateCase {
    fn new(settings: &[(&str, &str)]) -> CertificateCase {
        let options = ClusterOptions { tls: Some(ClusterTls::default()), ..ClusterOptions::default() };
        let options = settings.iter().fold(options, |options, (name, value)| options.set(name, value));
        let folder = CertificateFolder(tempfile::tempdir().unwrap());
        CertificateCase { cluster: Cluster::start(options).unwrap(), folder }
    }

    /// Installs the certificate of this name, followed by those of others.
    fn install(&mut self, name: &str, others: &[&str]) {
        let read = |file: String| fs::read_to_string(self.folder.path(&file)).unwrap();
        let chain: String = [name].iter().chain(others).map(|name| read(format!("{name}.crt"))).collect();
        // The files keep their owner and their mode.
        let folder = self.cluster.socket_dir();
        fs::write(folder.join("server.crt"), chain).unwrap();
        fs::write(folder.join("server.key"), read(format!("{name}.key"))).unwrap();
        self.cluster.restart().unwrap();
    }

    fn connection(&self, host: &str, mode: &str, root: Option<&Path>) -> String {
        let root = root.map(|root| format!(" sslrootcert={}", root.display())).unwrap_or_default();
        let port = self.cluster.port();
        format!("host={host} hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres sslmode={mode}{root}")
    }

    /// Returns psql's error, if it refuses the connection.
    fn psql(&self, connection: &str) -> Result<(), String> {
        let done = Command::new(self.cluster.bin("psql"))
            .args(["-X", "-A", "-t", connection, "-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"])
            .env_clear()
            .env("HOME", self.folder.0.path())
            .output()
            .expect("psql runs");
        match done.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
        }
    }

    async fn expect(&self, what: &str, host: &str, root: &str, verdict: Verdict) {
        let root = self.folder.path(&format!("{root}.crt"));
        for (mode, root, expected) in [
            ("require", None, Accepted),
            ("verify-ca", Some(root.as_path()), if matches!(verdict, OtherName(_)) { Accepted } else { verdict }),
            ("verify-full", Some(root.as_path()), verdict),
        ] {
            let connection = self.connection(host, mode, root);
            let psql = self.psql(&connection);
            let ours = SqlConnection::connect(&ConnectionOptions::parse(&connection).unwrap()).await;
            let ours = ours.map(drop).map_err(|error| error.to_string());
            assert_eq!(ours.is_ok(), psql.is_ok(), "{what}, {mode}: laredo {ours:?}, psql {psql:?}");
            match (&ours, expected) {
                (Ok(()), Accepted) => {}
                (Err(said), Refused(words) | OtherName(words)) => {
                    assert!(said.contains(words), "{what}, {mode}: {said}");
                }
                _ => panic!("{what}, {mode}: {ours:?} is not {expected:?}"),
            }
        }
    }
}

#[tokio::test]
async fn certificates_that_psql_accepts_are_accepted() {
    let mut case = CertificateCase::new(&[]);
    let folder = &case.folder;
    folder.authority(&CertificateWish::new("root", RSA, Some(CA)).subject("/CN=root"));
    folder.authority(&CertificateWish::new("root1", RSA, None).subject("/CN=root of version 1"));
    folder.authority(&CertificateWish::new("root521", P521, Some(CA)).subject("/CN=root with P-521"));
    folder.issue("root", &CertificateWish::new("between", RSA, Some(CA)).subject("/CN=between"));
    for (what, by, key, extensions, others) in [
        ("version 1", "root", RSA, None, &[][..]),
        ("version 1 of a root of version 1", "root1", RSA, None, &[]),
        ("version 1 below another authority", "between", RSA, None, &["between"]),
        ("version 1 with P-256", "root", P256, None, &[]),
        ("version 1 with P-521", "root521", P521, None, &[]),
        ("common name only", "root", RSA, Some("basicConstraints = CA:FALSE"), &[]),
        (
            "common name only below another authority",
            "between",
            P256,
            Some("basicConstraints = CA:FALSE"),
            &["between"],
        ),
        ("alternative name", "root", RSA, Some(LOCALHOST), &[]),
        ("alternative name of a root of version 1", "root1", RSA, Some(LOCALHOST), &[]),
        ("P-521", "root", P521, Some(LOCALHOST), &[]),
        ("P-521 of P-521", "root521", P521, Some(LOCALHOST), &[]),
        ("P-256 of P-521", "root521", P256, Some(LOCALHOST), &[]),
        ("Ed25519", "root", ED25519, Some(LOCALHOST), &[]),
        ("an authority that is a server", "root", RSA, Some(CA), &[]),
    ] {
        case.folder.issue(by, &CertificateWish::new("server", key, extensions));
        case.install("server", others);
        let root = if by == "between" { "root" } else { by };
        case.expect(what, "localhost", root, Accepted).await;
    }
    for (what, extensions) in [("version 1", None), ("an authority", Some(CA))] {
        case.folder.authority(&CertificateWish::new("server", RSA, extensions));
        case.install("server", &[]);
        case.expect(&format!("self-signed, {what}"), "localhost", "server", Accepted).await;
    }
}

#[tokio::test]
async fn older_servers_with_tls_1_2_may_have_such_certificates() {
    let mut case = CertificateCase::new(&[("ssl_max_protocol_version", "TLSv1.2")]);
    case.folder.authority(&CertificateWish::new("root", RSA, Some(CA)).subject("/CN=root"));
    for (what, key, extensions) in [
        ("version 1", RSA, None),
        ("version 1 with P-256", P256, None),
        ("common name only", RSA, Some("basicConstraints = CA:FALSE")),
        ("alternative name", P256, Some(LOCALHOST)),
    ] {
        case.folder.issue("root", &CertificateWish::new("server", key, extensions));
        case.install("server", &[]);
        case.expect(what, "localhost", "root", Accepted).await;
    }
}

#[tokio::test]
async fn certificates_that_psql_refuses_are_refused_with_the_reason() {
    let mut case = CertificateCase::new(&[]);
    let folder = &case.folder;
    folder.authority(&CertificateWish::new("root", RSA, Some(CA)).subject("/CN=root"));
    folder.authority(&CertificateWish::new("stranger", RSA, Some(CA)).subject("/CN=stranger"));
    folder.authority(&CertificateWish::new("namesake", RSA, Some("basicConstraints = CA:TRUE")).subject("/CN=root"));
    let short = "basicConstraints = critical, CA:TRUE, pathlen:0";
    folder.authority(&CertificateWish::new("short", RSA, Some(short)).subject("/CN=short"));
    folder.issue("short", &CertificateWish::new("below_short", RSA, Some(CA)).subject("/CN=below short"));
    let no_signing = "basicConstraints = critical, CA:TRUE\nkeyUsage = cRLSign";
    folder.issue("root", &CertificateWish::new("mute", RSA, Some(no_signing)).subject("/CN=mute"));
    let leaf = "basicConstraints = CA:FALSE";
    folder.issue("root", &CertificateWish::new("leaf", RSA, Some(leaf)).subject("/CN=leaf"));
    folder.issue("root", &CertificateWish::new("old", RSA, None).subject("/CN=old"));
    let client_only = "subjectAltName = DNS:localhost\nextendedKeyUsage = clientAuth";
    let client_ca = "basicConstraints = critical, CA:TRUE\nextendedKeyUsage = clientAuth";
    let may_not = "it was issued by a certificate that may not issue it";
    for (what, by, extensions, others, root, words) in [
        (
            "another root",
            "stranger",
            Some(LOCALHOST),
            &[][..],
            "root",
            "was issued by \"CN=stranger\", and sslrootcert /",
        ),
        ("another root, version 1", "stranger", None, &[], "root", "was issued by \"CN=stranger\""),
        ("a missing authority between", "leaf", Some(LOCALHOST), &[], "root", "was issued by \"CN=leaf\""),
        ("another key", "namesake", Some(LOCALHOST), &[], "root", "was not signed by the key that sslrootcert /"),
        ("another key, version 1", "namesake", None, &[], "root", "was not signed by the key that sslrootcert /"),
        ("a client's", "root", Some(client_only), &[], "root", "extendedKeyUsage does not allow a server"),
        ("a client's authority", "root", Some(client_ca), &[], "root", "extendedKeyUsage does not allow a server"),
        ("issued by a server", "leaf", Some(LOCALHOST), &["leaf"], "root", may_not),
        (
            "version 1, issued by a server",
            "leaf",
            None,
            &["leaf"],
            "root",
            "\"CN=leaf\" cannot be used: it is not one of",
        ),
        ("version 1, issued by version 1", "old", None, &["old"], "root", "version 1 has to be trusted itself"),
        ("too far below", "below_short", Some(LOCALHOST), &["below_short"], "short", may_not),
        ("version 1, too far below", "below_short", None, &["below_short"], "short", "path length allows fewer"),
        ("version 1, keyUsage", "mute", None, &["mute"], "root", "keyUsage does not allow it to issue"),
    ] {
        case.folder.issue(by, &CertificateWish::new("server", RSA, extensions));
        case.install("server", others);
        case.expect(what, "localhost", root, Refused(words)).await;
    }
    case.folder.authority(&CertificateWish::new("server", RSA, None));
    case.install("server", &[]);
    case.expect("self-signed", "localhost", "root", Refused("is self-signed, and not in sslrootcert /")).await;

    for (from, to, words) in [
        ("20000101000000Z", "20010101000000Z", "\"CN=localhost\" has expired at "),
        ("20990101000000Z", "20990201000000Z", "\"CN=localhost\" is not valid before "),
    ] {
        let wish = CertificateWish::new("server", RSA, Some(LOCALHOST));
        case.folder.issue_valid_between("root", &wish, from, to);
        case.install("server", &[]);
        case.expect(words, "localhost", "root", Refused(words)).await;
    }
}

#[tokio::test]
async fn the_names_of_a_certificate_count_as_in_libpq() {
    let mut case = CertificateCase::new(&[]);
    case.folder.authority(&CertificateWish::new("root", RSA, Some(CA)).subject("/CN=root"));
    let list = "is for a.example, *.b.example, 127.0.0.1, and not for ";
    let names = "subjectAltName = DNS:a.example, DNS:*.b.example, IP:127.0.0.1";
    let not_for_it = "and not for db.example; set host to a name of the certificate";
    for (subject, extensions, hosts) in [
        (
            "/CN=db.example",
            Some(names),
            &[
                ("a.example", Accepted),
                ("A.Example", Accepted),
                ("x.b.example", Accepted),
                ("127.0.0.1", Accepted),
                ("b.example", OtherName(list)),
                ("x.y.b.example", OtherName(list)),
                ("db.example", OtherName(list)),
            ][..],
        ),
        ("/CN=*.example", None, &[("db.example", Accepted), ("a.db.example", OtherName("is for *.example, and not"))]),
        ("/CN=127.0.0.1", None, &[("127.0.0.1", Accepted), ("db.example", OtherName(not_for_it))]),
        // A DNS name does not replace the common name of an address.
        ("/CN=127.0.0.1", Some("subjectAltName = DNS:a.example"), &[("127.0.0.1", Accepted)]),
        ("/O=nobody", Some("basicConstraints = CA:FALSE"), &[("db.example", OtherName("is for no host, and not"))]),
    ] {
        case.folder.issue("root", &CertificateWish::new("server", RSA, extensions).subject(subject));
        case.install("server", &[]);
        for (host, verdict) in hosts {
            case.expect(&format!("{subject} {extensions:?} for {host}"), host, "root", *verdict).await;
        }
    }
}

#[tokio::test]
async fn a_common_name_does_not_go_around_a_restriction_of_names() {
    let mut case = CertificateCase::new(&[]);
    let restricted = "basicConstraints = critical, CA:TRUE\nnameConstraints = critical, permitted;DNS:a.example";
    case.folder.authority(&CertificateWish::new("root", RSA, Some(restricted)).subject("/CN=root"));
    let common_name = CertificateWish::new("server", RSA, Some("basicConstraints = CA:FALSE"));
    case.folder.issue("root", &common_name);
    case.install("server", &[]);
    let connection = case.connection("localhost", "verify-full", Some(&case.folder.path("root.crt")));
    let refused = SqlConnection::connect(&ConnectionOptions::parse(&connection).unwrap()).await.unwrap_err();
    // psql accepts it: OpenSSL compares a common name without a dot with no restriction.
    assert!(refused.to_string().contains("only as its common name"), "{refused}");
    case.folder.issue("root", &CertificateWish::new("server", RSA, None));
    case.install("server", &[]);
    let refused = SqlConnection::connect(&ConnectionOptions::parse(&connection).unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("it restricts names"), "{refused}");
}
