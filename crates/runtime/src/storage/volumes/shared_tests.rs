//! What a volume counts when sandboxes and the API change it at once: files with several names, and files that are open.

use std::{os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use firkin_share::{Access, Gate, Share, serve};
use fs_err as fs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::{
    VolumeLimits, Volumes,
    content::{Attributes, Content},
    room,
    usage::{Account, LEAST_BYTES},
};
use crate::{
    ground::team::TeamId,
    host::disk::{DiskPressureGuard, StatvfsProbe},
};

const QUOTA: u64 = 64 << 20;
const MIB: usize = 1 << 20;

/// A volume, as the API has it and as a sandbox does.
struct Bench {
    dir: tempfile::TempDir,
    account: Arc<Account>,
    content: Content,
    guest: DuplexStream,
}

fn open(dir: &Path) -> (Arc<Account>, Content) {
    let disk = DiskPressureGuard::new(dir.to_owned(), Some(0), Arc::new(StatvfsProbe));
    let account = Account::new(QUOTA);
    (Arc::clone(&account), Content::open(dir, disk, account).unwrap())
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("content")).unwrap();
        fs::create_dir(dir.path().join("aside")).unwrap();
        let (account, content) = open(dir.path());
        let held = Arc::new(tokio::sync::Mutex::new(())).try_lock_owned().unwrap();
        let share: Arc<Share> = Arc::new(room::share(content.root(), &dir.path().join("places"), held).unwrap());
        account.set_guests(&share);
        let (guest, host) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move { serve(share, Access::Write, &Gate::default().turn().await, host).await });
        Self { dir, account, content, guest }
    }

    async fn put(&self, path: &str, bytes: usize) {
        let mut upload = self.content.write(path, Attributes::default(), true).await.unwrap();
        upload.push(&vec![1; bytes]).await.unwrap();
        upload.finish().await.unwrap();
    }

    /// One message of a guest's kernel, and what is answered behind the head.
    async fn ask(&mut self, opcode: u8, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let length = u32::try_from(40 + body.len()).unwrap();
        let mut message = [&length.to_le_bytes(), &[opcode, 0, 0, 0][..], &[1; 8], &node.to_le_bytes(), &[0; 16]].concat();
        message.extend_from_slice(body);
        self.guest.write_all(&message).await.unwrap();
        loop {
            let mut head = [0; 16];
            self.guest.read_exact(&mut head).await.unwrap();
            let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
            let mut answer = vec![0; length - 16];
            self.guest.read_exact(&mut answer).await.unwrap();
            // What the kernel is told without having asked has no number.
            if head[8..] == [1; 8] {
                let error = i32::from_le_bytes(head[4..8].try_into().unwrap());
                return if error == 0 { Ok(answer) } else { Err(error) };
            }
        }
    }

    async fn look_up(&mut self, parent: u64, name: &str) -> u64 {
        let answer = self.ask(1, parent, &[name.as_bytes(), &[0]].concat()).await.unwrap();
        u64::from_le_bytes(answer[..8].try_into().unwrap())
    }

    async fn link(&mut self, of: u64, parent: u64, name: &str) {
        self.ask(13, parent, &[&of.to_le_bytes(), name.as_bytes(), &[0]].concat()).await.unwrap();
    }

    /// What counts, which is also what would be counted anew.
    async fn used(&self) -> u64 {
        let used = self.account.used().unwrap();
        let (account, content) = open(self.dir.path());
        content.count().await.unwrap();
        assert_eq!(account.used(), Some(used), "as after a restart");
        used
    }
}

#[tokio::test]
async fn a_file_counts_once_whatever_its_names_until_the_last_has_gone() {
    let mut bench = Bench::new();
    bench.content.make_dir("/dir", Attributes::default(), false).await.unwrap();
    bench.put("/file", 10 * MIB).await;
    let all = bench.used().await;
    let (file, dir) = (bench.look_up(1, "file").await, bench.look_up(1, "dir").await);
    bench.link(file, 1, "second").await;
    bench.link(file, dir, "third").await;
    bench.link(file, dir, "fourth").await;
    assert_eq!(bench.used().await, all);
    // By the API: removed, replaced, and with all that it is in.
    bench.content.remove("/file").await.unwrap();
    assert_eq!(bench.used().await, all);
    bench.put("/second", 0).await;
    assert_eq!(bench.used().await, all + LEAST_BYTES);
    bench.content.remove("/dir").await.unwrap();
    assert_eq!(bench.used().await, 2 * LEAST_BYTES, "the top, and what replaced it");
}

#[tokio::test]
async fn no_files_with_other_names_make_room_by_being_removed() {
    let mut bench = Bench::new();
    bench.put("/file", 40 * MIB).await;
    let file = bench.look_up(1, "file").await;
    for round in 0..4 {
        bench.link(file, 1, &format!("kept{round}")).await;
        bench.content.remove(&format!("/kept{round}")).await.unwrap();
    }
    let mut more = bench.content.write("/more", Attributes::default(), true).await.unwrap();
    assert!(more.push(&vec![1; 30 * MIB]).await.is_err());
}

#[tokio::test]
async fn what_the_api_removes_counts_until_guests_have_closed_it() {
    let mut bench = Bench::new();
    bench.content.make_dir("/dir", Attributes::default(), false).await.unwrap();
    for path in ["/one", "/two", "/dir/three"] {
        bench.put(path, 10 * MIB).await;
    }
    let all = bench.used().await;
    let dir = bench.look_up(1, "dir").await;
    let open = [bench.look_up(1, "one").await, bench.look_up(1, "two").await, bench.look_up(dir, "three").await];
    for file in open {
        bench.ask(14, file, &[2, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
    }
    bench.content.remove("/one").await.unwrap();
    bench.put("/two", 0).await;
    bench.content.remove("/dir").await.unwrap();
    assert_eq!(bench.account.used(), Some(all), "without a directory, and with an empty file");
    for file in open {
        // They can be read and written until then.
        let read = [&[0; 16][..], &4_u32.to_le_bytes(), &[0; 20]].concat();
        assert_eq!(bench.ask(15, file, &read).await, Ok(vec![1; 4]));
        bench.ask(18, file, &[0; 24]).await.unwrap();
    }
    assert_eq!(bench.used().await, 2 * LEAST_BYTES);
    assert_eq!(bench.ask(14, open[0], &[2, 0, 0, 0, 0, 0, 0, 0]).await, Err(-116), "ESTALE");
}

#[tokio::test]
async fn the_top_of_a_volume_of_an_earlier_server_is_opened_once() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = || {
        let disk = DiskPressureGuard::new(dir.path().to_owned(), Some(0), Arc::new(StatvfsProbe));
        Volumes::of(dir.path(), disk, VolumeLimits::default())
    };
    let made = volumes().create((TeamId::first(), None), "v").await.unwrap();
    let at = dir.path().join("volumes").join(&made.id);
    let mode = || fs::metadata(at.join("content")).unwrap().permissions().mode() & 0o7777;
    let set = |mode| fs::set_permissions(at.join("content"), std::fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(mode(), 0o777);
    let mut earlier: serde_json::Value = serde_json::from_slice(&fs::read(at.join("volume.json")).unwrap()).unwrap();
    earlier.as_object_mut().unwrap().remove("has_open_top");
    fs::write(at.join("volume.json"), earlier.to_string()).unwrap();
    set(0o755);
    drop(volumes().share(&made.id).await.unwrap());
    assert_eq!(mode(), 0o777);
    // What its owner says then holds.
    for chosen in [0o755, 0o700] {
        set(chosen);
        drop(volumes().share(&made.id).await.unwrap());
        assert_eq!(mode(), chosen);
    }
    assert_eq!(volumes().get(&crate::ground::team::Scope::Host, &made.id).await.unwrap().token, made.token);
}
