//! Container images from a registry on the loopback, which tells the truth or does not.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails, fails the test")]

use std::{
    collections::HashMap,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use firkin_image::{
    Additions, Cache, GuestKernel, host_certificates,
    oci::{
        Image, ImageError,
        client::RegistryError,
        credentials::Credentials,
        hops::HopError,
        image,
        layer::LayerError,
        registry::{ImageSource, Mirrors, PullError},
    },
};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const IMAGE_BYTES: u64 = 64 << 20;

/// Paths to a media type and a body.
type Content = HashMap<String, (&'static str, Vec<u8>)>;

/// A registry on the loopback. It ends with the test's runtime.
async fn serve(content: Content) -> String {
    async fn answer(State(content): State<Arc<Content>>, uri: Uri) -> Response {
        match content.get(uri.path()) {
            Some((kind, body)) => ([(header::CONTENT_TYPE, *kind)], body.clone()).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/v2/", get(|| async { "{}" })).fallback(answer).with_state(Arc::new(content));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address.to_string()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar archive; content that begins with `-> ` makes a symbolic link.
fn layer(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        // Written by hand: the library refuses to write what an attacker writes.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        let content = match content.strip_prefix("-> ") {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name(target).unwrap();
                ""
            }
            None => content,
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Everything of an image `library/test:1`.
fn repository(layers: &[Vec<u8>]) -> Content {
    let base = "/v2/library/test";
    let mut content = Content::new();
    let mut blob = |bytes: Vec<u8>, kind: &str| {
        let part = serde_json::json!({"mediaType": kind, "digest": digest(&bytes), "size": bytes.len()});
        content.insert(format!("{base}/blobs/{}", digest(&bytes)), ("application/octet-stream", bytes));
        part
    };
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["A=b"], "WorkingDir": "/srv", "User": "1000", "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>()},
    });
    let config = blob(config.to_string().into_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let layers: Vec<_> = layers.iter().map(|layer| blob(gzip(layer), kind)).collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    let manifest = manifest.to_string().into_bytes();
    content.insert(format!("{base}/manifests/1"), (MANIFEST, manifest));
    content
}

async fn pull(cache: &Path, content: Content) -> Result<Image, ImageError> {
    pull_with(cache, content, &additions(cache)).await
}

async fn pull_with(cache: &Path, content: Content, additions: &Additions) -> Result<Image, ImageError> {
    let host = serve(content).await;
    let mirrors = Mirrors::parse([format!("docker.io={host}").as_str()]).unwrap();
    let source = ImageSource { reference: "test:1".into(), credentials: None, mirrors };
    image(&Cache::open(cache).await.unwrap(), &source, additions, IMAGE_BYTES, &|_| ()).await
}

/// A kernel with one module, and nobody to trust.
fn additions(dir: &Path) -> Additions {
    let archive = dir.join("modules.tar");
    fs_err::write(&archive, layer(&[("lib/modules/6.12.1/a.ko", "a module")])).unwrap();
    let (kernel, modules) = (dir.join("vmlinuz"), dir.join("modules"));
    let kernel = GuestKernel { kernel, modules, archive, version: "6.12.1".into(), digest: "k".into() };
    Additions { kernel, certificates: Vec::new() }
}

/// The images that a cache has.
fn images(cache: &Path) -> Vec<PathBuf> {
    let inside = |dir: PathBuf| fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let kinds = inside(cache.to_owned()).filter(|kind| kind.file_name().unwrap().to_str().unwrap().starts_with("image-"));
    kinds.flat_map(inside).collect()
}

/// Everything below `dir`.
fn all(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for path in fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() && !path.is_symlink() {
                pending.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "a skip is printed")]
async fn another_user_finds_no_image_in_the_cache() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: only root can look as another user");
        return;
    }
    let open = |path: &Path| fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    // As an earlier version left it.
    let cache = dir.path().join("cache");
    let old = cache.join("rootfs-v1/key");
    fs_err::create_dir_all(&old).unwrap();
    fs_err::write(old.join("rootfs.ext4"), "a file system").unwrap();
    for path in [&cache, &cache.join("rootfs-v1"), &old, &old.join("rootfs.ext4")] {
        open(path);
    }
    let found_by_nobody = |paths: &[PathBuf]| {
        let mut look = Command::new("setpriv");
        look.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "sh", "-c"]);
        look.arg(r#"for path; do if [ -e "$path" ]; then echo "$path"; fi; done"#).arg("sh").args(paths);
        String::from_utf8(look.current_dir("/").output().unwrap().stdout).unwrap()
    };
    assert!(found_by_nobody(&all(&cache)).contains("rootfs.ext4"), "the test finds as that user");

    let image = pull_with(&cache, repository(&[layer(&[("etc/secret", "of a private image")])]), &additions(dir.path())).await;
    let image = image.unwrap().root.path;
    let found = all(&cache);
    assert!(found.contains(&image) && found.iter().any(|path| path.ends_with("logs")));
    assert_eq!(found_by_nobody(&found), "");
    // Each by itself too, whatever stands above it.
    for path in all(image.parent().unwrap()).iter().map(PathBuf::as_path).chain(image.ancestors().take(4)) {
        let mode = fs_err::metadata(path).unwrap().permissions().mode();
        assert!(mode & 0o077 == 0, "{} is {mode:o}", path.display());
    }
    assert_eq!(fs_err::metadata(cache.join("rootfs-v1")).unwrap().permissions().mode() & 0o777, 0o700);
}

/// What `debugfs` says to a request about an image.
fn debugfs(image: &Path, request: &str) -> String {
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-R", request]).arg(image).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    String::from_utf8_lossy(&debugfs.output().unwrap().stdout).into_owned()
}

#[tokio::test]
async fn layers_become_one_root_file_system() {
    let cache = tempfile::tempdir().unwrap();
    let lower = layer(&[
        ("etc/hello", "old"),
        ("etc/gone", "x"),
        ("usr/bin/tool", "t"),
        ("bin", "-> usr/bin"),
        ("usr/lib/x", "x"),
        ("lib", "-> usr/lib"),
    ]);
    let upper = layer(&[("etc/hello", "new"), ("etc/.wh.gone", ""), ("bin/added", "a")]);
    let content = repository(&[lower, upper]);
    let image = pull(cache.path(), content.clone()).await.unwrap();

    assert_eq!(image.config.env, ["A=b"]);
    assert_eq!((image.config.workdir.as_deref(), image.config.user.as_deref()), (Some("/srv"), Some("1000")));
    assert_eq!(debugfs(&image.root.path, "cat /etc/hello"), "new");
    assert_eq!(debugfs(&image.root.path, "cat /usr/bin/added"), "a");
    assert!(!debugfs(&image.root.path, "ls /etc").contains("gone"));
    assert_eq!(debugfs(&image.root.path, "cat /usr/lib/modules/6.12.1/a.ko"), "a module", "the kernel's modules are in it");

    // Only the manifest is asked for again.
    let only_manifest = content.into_iter().filter(|(path, _)| path.contains("/manifests/")).collect();
    assert_eq!(pull(cache.path(), only_manifest).await.unwrap(), image);
}

#[tokio::test]
async fn an_image_trusts_the_hosts_authority_when_it_is_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "an authority of the network");
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let server = rcgen::CertificateParams::new(vec!["packages.test".to_owned()]).unwrap();
    let server = server.signed_by(&rcgen::KeyPair::generate().unwrap(), &rcgen::Issuer::new(params, key)).unwrap();
    let (local, leaf) = (dir.path().join("usr/local/share/ca-certificates"), dir.path().join("server.pem"));
    fs_err::create_dir_all(&local).unwrap();
    fs_err::write(local.join("network.crt"), authority.pem()).unwrap();
    fs_err::write(&leaf, server.pem()).unwrap();

    // The store of such a directory is a link in some distributions.
    let files = [("etc/pki/tls/x", "x"), ("etc/ssl", "-> pki/tls"), ("etc/hello", "x")];
    let without = additions(dir.path());
    let with = Additions { certificates: host_certificates(dir.path()).unwrap(), ..without.clone() };
    for (additions, trusted) in [(without, false), (with, true)] {
        let image = pull_with(dir.path(), repository(&[layer(&files)]), &additions).await.unwrap();
        let store = dir.path().join("store.pem");
        fs_err::write(&store, debugfs(&image.root.path, "cat /etc/pki/tls/certs/ca-certificates.crt")).unwrap();
        let mut verify = Command::new("openssl");
        verify.args(["verify", "-no-CAfile", "-no-CApath", "-no-CAstore", "-CAfile"]).args([&store, &leaf]);
        assert_eq!(verify.output().unwrap().status.success(), trusted);
        let local = debugfs(&image.root.path, "cat /usr/local/share/ca-certificates/firkin-host-1.crt");
        assert_eq!(local.trim() == authority.pem().replace("\r\n", "\n").trim(), trusted, "the image can make its store anew");
    }
}

#[tokio::test]
async fn what_cannot_be_trusted_is_refused_and_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();

    let good = layer(&[("etc/hello", "x")]);
    let mut swapped = repository(std::slice::from_ref(&good));
    let (_, body) = swapped.get_mut(&format!("/v2/library/test/blobs/{}", digest(&gzip(&good)))).unwrap();
    let other = gzip(&layer(&[("etc/hello", "y")]));
    assert_eq!(other.len(), body.len(), "the digest alone tells them apart");
    *body = other;
    let error = pull(cache.path(), swapped).await.unwrap_err();
    assert!(matches!(error, ImageError::Pull(PullError::Blob { .. })), "{error:?}");

    let error = pull(cache.path(), repository(&[layer(&[("../../etc/cron.d/x", "x")])])).await.unwrap_err();
    assert!(matches!(error, ImageError::Layer { number: 1, source: LayerError::Tree(_), .. }), "{error:?}");

    let large = "0".repeat(usize::try_from(IMAGE_BYTES).unwrap());
    let error = pull(cache.path(), repository(&[layer(&[("zeroes", &large)])])).await.unwrap_err();
    assert!(matches!(error, ImageError::Layer { source: LayerError::TooLarge { .. }, .. }), "{error:?}");

    let error = pull(cache.path(), Content::new()).await.unwrap_err();
    assert!(matches!(error, ImageError::Pull(PullError::Manifest { .. })), "{error:?}");

    assert_eq!(images(cache.path()).len(), 0, "nothing of a refused image is kept");
    pull(cache.path(), repository(&[good])).await.unwrap();
    assert_eq!(images(cache.path()).len(), 1, "the test looks where images are kept");
}

/// A service of the host that no stranger is to reach, and how often it was asked.
async fn internal_service() -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let answer = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        async { r#"{"token": "internal-secret", "errors": "internal-secret"}"# }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (format!("http://{address}/admin"), asked)
}

#[tokio::test]
async fn a_registry_does_not_lead_the_server_to_services_of_the_host() {
    let cache = tempfile::tempdir().unwrap();
    let (internal, asked) = internal_service().await;
    let challenge = format!("Bearer realm=\"{internal}\",service=\"x\"");
    let redirect = internal.clone();
    let strangers: [(&str, Router); 3] = [
        (
            "token",
            Router::new().fallback(move || async move { (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]) }),
        ),
        (
            "redirect",
            Router::new().fallback(move || async move { (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, redirect)]) }),
        ),
        ("body", Router::new().fallback(|| async { (StatusCode::BAD_GATEWAY, "internal-secret") })),
    ];
    for (what, app) in strangers {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mirrors = Mirrors::parse([format!("docker.io={host}").as_str()]).unwrap();
        let source = ImageSource { reference: "test:1".into(), credentials: None, mirrors };
        let store = Cache::open(cache.path()).await.unwrap();
        let error = image(&store, &source, &additions(cache.path()), IMAGE_BYTES, &|_| ()).await.unwrap_err();
        let text = format!("{:?}", all_causes(&error));
        assert!(!text.contains("internal-secret"), "{what}: {text}");
        let is_refused =
            matches!(error, ImageError::Pull(PullError::Manifest { source: RegistryError::Hop(HopError::Private(_)), .. }));
        assert_eq!(is_refused, what != "body", "{what}: {error:?}");
    }
    // A registry on the host's own addresses is reached only where the operator named it.
    for reference in [internal.trim_start_matches("http://").replace("/admin", "/test:1"), "localhost:1/test:1".to_owned()] {
        let source = ImageSource { reference: reference.clone(), ..ImageSource::default() };
        let store = Cache::open(cache.path()).await.unwrap();
        let error = image(&store, &source, &additions(cache.path()), IMAGE_BYTES, &|_| ()).await.unwrap_err();
        let is_refused =
            matches!(error, ImageError::Pull(PullError::Manifest { source: RegistryError::Hop(HopError::Private(_)), .. }));
        assert!(is_refused, "{reference}: {error:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "a service of the host was asked");
}

#[tokio::test]
async fn an_image_is_pulled_with_the_token_that_the_registry_gives() {
    let cache = tempfile::tempdir().unwrap();
    let content = Arc::new(repository(&[layer(&[("etc/hello", "x")])]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    let answer = move |headers: axum::http::HeaderMap, uri: Uri| async move {
        let authorization = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        if uri.path() == "/token" {
            assert!(uri.query().unwrap().contains("repository%3Alibrary%2Ftest%3Apull"), "{uri}");
            let is_login = authorization.is_some_and(|value| value.starts_with("Basic "));
            return if is_login { r#"{"access_token":"good"}"#.into_response() } else { StatusCode::FORBIDDEN.into_response() };
        }
        if authorization.as_deref() != Some("Bearer good") {
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"a registry\"");
            return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
        }
        match content.get(uri.path()) {
            Some((kind, body)) => ([(header::CONTENT_TYPE, *kind)], body.clone()).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let mirrors = Mirrors::parse([format!("docker.io={host}").as_str()]).unwrap();
    let credentials = Some(Credentials { username: "user".into(), password: "password".into() });
    let source = ImageSource { reference: "test:1".into(), credentials, mirrors };
    let store = Cache::open(cache.path()).await.unwrap();
    let pulled = image(&store, &source, &additions(cache.path()), IMAGE_BYTES, &|_| ()).await.unwrap();
    assert_eq!(debugfs(&pulled.root.path, "cat /etc/hello"), "x");
    let without = ImageSource { credentials: None, ..source };
    let error = image(&store, &without, &additions(cache.path()), IMAGE_BYTES, &|_| ()).await.unwrap_err();
    assert!(matches!(error, ImageError::Pull(PullError::Manifest { source: RegistryError::Login, .. })), "{error:?}");
}

/// Everything that an error says, down to its first cause.
fn all_causes(error: &ImageError) -> Vec<String> {
    let mut texts = vec![format!("{error:?}")];
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        texts.push(inner.to_string());
        cause = inner.source();
    }
    texts
}
