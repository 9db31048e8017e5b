//! Files through `filesystem.Filesystem`.

use connectrpc::{ErrorCode, client::HttpClient};
use firkin_wire::envd::filesystem::{
    __buffa::oneof::watch_dir_response::Event, CreateWatcherRequest, EventType, FileType, FilesystemClient,
    GetWatcherEventsRequest, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, RemoveWatcherRequest, StatRequest,
    WatchDirRequest, WatchDirResponse,
};

use crate::harness::{Envd, user};

fn stat(path: String) -> StatRequest {
    StatRequest { path, ..Default::default() }
}

async fn code_of_stat(client: &FilesystemClient<HttpClient>, path: String) -> Option<ErrorCode> {
    client.stat(stat(path)).await.err().map(|error| error.code)
}

#[tokio::test]
async fn entries_are_made_described_moved_and_removed() {
    let envd = Envd::start();
    let client = envd.filesystem();
    let dir = envd.path("a/b");
    let make = || MakeDirRequest { path: dir.clone(), ..Default::default() };
    let entry = client.make_dir(make()).await.unwrap().into_owned().entry.into_option().unwrap();
    assert_eq!((entry.name.as_str(), entry.permissions.as_str(), entry.mode), ("b", "drwxr-xr-x", 0o755));
    assert_eq!(entry.owner, user());
    assert_eq!(entry.r#type, FileType::FILE_TYPE_DIRECTORY);
    assert_eq!(client.make_dir(make()).await.err().unwrap().code, ErrorCode::AlreadyExists);

    fs_err::write(envd.path("a/file"), "12345").unwrap();
    let over_file = MakeDirRequest { path: envd.path("a/file"), ..Default::default() };
    assert_eq!(client.make_dir(over_file).await.err().unwrap().code, ErrorCode::InvalidArgument);
    let entry = client.stat(stat(envd.path("a/file"))).await.unwrap().into_owned().entry.into_option().unwrap();
    assert_eq!((entry.size, entry.r#type.to_i32()), (5, FileType::FILE_TYPE_FILE as i32));
    assert!(entry.modified_time.is_set());

    let rename = MoveRequest { source: envd.path("a/file"), destination: envd.path("c/d/moved"), ..Default::default() };
    let entry = client.r#move(rename.clone()).await.unwrap().into_owned().entry.into_option().unwrap();
    assert_eq!(entry.path, envd.path("c/d/moved"));
    assert_eq!(client.r#move(rename).await.err().unwrap().code, ErrorCode::NotFound);

    let list = ListDirRequest { path: envd.path(""), depth: 2, ..Default::default() };
    let listed = client.list_dir(list).await.unwrap().into_owned();
    assert_eq!(
        listed.entries.iter().map(|entry| entry.path.clone()).collect::<Vec<_>>(),
        ["a", "a/b", "c", "c/d"].map(|name| envd.path(name))
    );
    let missing = ListDirRequest { path: envd.path("none"), depth: 1, ..Default::default() };
    assert_eq!(client.list_dir(missing).await.err().unwrap().code, ErrorCode::NotFound);

    for _ in 0..2 {
        client.remove(RemoveRequest { path: envd.path("a"), ..Default::default() }).await.unwrap();
    }
    assert_eq!(code_of_stat(&client, envd.path("a")).await, Some(ErrorCode::NotFound));
    assert_eq!(code_of_stat(&client, "~other".to_owned()).await, Some(ErrorCode::InvalidArgument));
}

#[tokio::test]
async fn an_upload_is_seen_as_create_chmod_write_by_both_kinds_of_watch() {
    let envd = Envd::start();
    let client = envd.filesystem();
    let path = envd.path("");
    let watch = WatchDirRequest { path: path.clone(), include_entry: true, ..Default::default() };
    let mut stream = client.watch_dir(watch).await.unwrap();
    let next = stream.message::<WatchDirResponse>().await.unwrap().unwrap().to_owned_message();
    assert!(matches!(next.event, Some(Event::Start(_))));
    let create = CreateWatcherRequest { path, ..Default::default() };
    let watcher_id = client.create_watcher(create).await.unwrap().into_owned().watcher_id;

    let octets = [("content-type", "application/octet-stream")];
    envd.send("POST", &format!("/files?path={}", envd.path("f")), &octets, "content").await;

    let expected = [EventType::EVENT_TYPE_CREATE, EventType::EVENT_TYPE_CHMOD, EventType::EVENT_TYPE_WRITE];
    for kind in expected {
        let next = stream.message::<WatchDirResponse>().await.unwrap().unwrap().to_owned_message();
        let Some(Event::Filesystem(event)) = next.event else { panic!("not an event") };
        assert_eq!((event.name.as_str(), event.r#type.to_i32()), ("f", kind as i32));
        assert_eq!(event.entry.as_option().unwrap().path, envd.path("f"));
    }
    let ask = || GetWatcherEventsRequest { watcher_id: watcher_id.clone(), ..Default::default() };
    let events = client.get_watcher_events(ask()).await.unwrap().into_owned().events;
    assert_eq!(events.iter().map(|event| event.r#type.to_i32()).collect::<Vec<_>>(), expected.map(|kind| kind as i32));
    assert!(client.get_watcher_events(ask()).await.unwrap().into_owned().events.is_empty());
    let remove = RemoveWatcherRequest { watcher_id: watcher_id.clone(), ..Default::default() };
    client.remove_watcher(remove).await.unwrap();
    assert_eq!(client.get_watcher_events(ask()).await.err().unwrap().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn only_directories_that_exist_are_watched() {
    let envd = Envd::start();
    let client = envd.filesystem();
    fs_err::write(envd.path("f"), "").unwrap();
    for (name, code) in [("none", ErrorCode::NotFound), ("f", ErrorCode::InvalidArgument)] {
        let create = CreateWatcherRequest { path: envd.path(name), ..Default::default() };
        assert_eq!(client.create_watcher(create).await.err().unwrap().code, code);
        let watch = WatchDirRequest { path: envd.path(name), ..Default::default() };
        let error = match client.watch_dir(watch).await {
            Err(error) => error,
            Ok(mut stream) => match stream.message::<WatchDirResponse>().await {
                Err(error) => error,
                Ok(_) => stream.error().cloned().unwrap(),
            },
        };
        assert_eq!(error.code, code);
    }
}

#[tokio::test]
async fn special_files_give_codes_of_their_own() {
    let envd = Envd::start();
    let client = envd.filesystem();
    let socket = std::os::unix::net::UnixListener::bind(envd.path("socket")).unwrap();
    nix::unistd::mkfifo(envd.path("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs_err::os::unix::fs::symlink(envd.path("loop"), envd.path("loop")).unwrap();
    fs_err::create_dir_all(envd.path("full/x")).unwrap();
    fs_err::write(envd.path("file"), "").unwrap();
    for name in ["socket", "pipe", "loop", "loop/x"] {
        let list = ListDirRequest { path: envd.path(name), depth: 1, ..Default::default() };
        assert_eq!(client.list_dir(list).await.err().unwrap().code, ErrorCode::InvalidArgument, "list {name}");
        let watch = CreateWatcherRequest { path: envd.path(name), ..Default::default() };
        assert_eq!(client.create_watcher(watch).await.err().unwrap().code, ErrorCode::InvalidArgument, "watch {name}");
        let make = MakeDirRequest { path: envd.path(name), ..Default::default() };
        assert_eq!(client.make_dir(make).await.err().unwrap().code, ErrorCode::InvalidArgument, "make {name}");
    }
    for (source, destination, code) in [
        ("file", "full", ErrorCode::InvalidArgument),
        ("full/x", "full", ErrorCode::AlreadyExists),
        ("full", "file", ErrorCode::InvalidArgument),
        ("full", "full/x/y", ErrorCode::InvalidArgument),
        ("file", "loop/x", ErrorCode::InvalidArgument),
        ("loop/x", "y", ErrorCode::InvalidArgument),
    ] {
        let rename = MoveRequest { source: envd.path(source), destination: envd.path(destination), ..Default::default() };
        assert_eq!(client.r#move(rename).await.err().unwrap().code, code, "{source} to {destination}");
    }
    assert_eq!(code_of_stat(&client, envd.path("loop/x")).await, Some(ErrorCode::InvalidArgument));
    for name in ["socket", "pipe", "loop"] {
        assert_eq!(code_of_stat(&client, envd.path(name)).await, None, "stat {name}");
        client.remove(RemoveRequest { path: envd.path(name), ..Default::default() }).await.unwrap();
        assert_eq!(code_of_stat(&client, envd.path(name)).await, Some(ErrorCode::NotFound));
    }
    drop(socket);
}
