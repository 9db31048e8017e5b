//! A directory that is shared, and mounts of it in this host: what an agent does in a guest, in two threads a mount.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc,
    },
};

use firkin_share::{Access, Figures, Gate, Room, Share, Sizes, serve};
use firkin_wire::fuse::{MAX_MESSAGE_BYTES, REPLY_HEAD_BYTES, length};
use fs_err as fs;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::io::Errno;

/// What an entry counts as at least.
const LEAST_BYTES: u64 = 4096;

/// A quota that only counts.
#[derive(Debug)]
struct Quota {
    most: u64,
    used: Mutex<u64>,
}

impl Room for Quota {
    fn size(&self, allocated: u64) -> u64 {
        allocated.max(LEAST_BYTES)
    }

    fn change(&self, most: u64, change: &mut dyn FnMut() -> Result<Sizes, Errno>) -> Result<(), Errno> {
        let mut used = self.used.lock().unwrap();
        if most > 0 && *used + most > self.most {
            return Err(Errno::DQUOT);
        }
        let Sizes { before, after } = change()?;
        *used = *used + after - before;
        Ok(())
    }

    fn figures(&self) -> Figures {
        Figures { used: *self.used.lock().unwrap(), quota: self.most }
    }
}

/// A shared directory, and beside it one that is not.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    quota: Arc<Quota>,
    share: Arc<Share>,
    runtime: tokio::runtime::Runtime,
}

/// Whether anything can be mounted here.
fn mounted() -> bool {
    let can = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        println!("SKIPPED: needs root and /dev/fuse");
    }
    can
}

impl Bench {
    pub(crate) fn new(quota: u64) -> Option<Self> {
        if !mounted() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["shared", "outside", "one", "two"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("outside/secret"), "").unwrap();
        let quota = Arc::new(Quota { most: quota, used: Mutex::new(LEAST_BYTES) });
        let share = share(&dir.path().join("shared"), &quota);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Some(Self { dir, quota, share, runtime })
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.path().join("shared")
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    pub(crate) fn used(&self) -> u64 {
        *self.quota.used.lock().unwrap()
    }

    /// What is there, counted anew.
    pub(crate) fn counted(&self) -> u64 {
        let (mut bytes, mut directories) = (0, vec![self.dir()]);
        while let Some(dir) = directories.pop() {
            bytes += (fs::metadata(&dir).unwrap().blocks() * 512).max(LEAST_BYTES);
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let stat = entry.metadata().unwrap();
                if stat.is_dir() {
                    directories.push(entry.path());
                } else {
                    bytes += (stat.blocks() * 512).max(LEAST_BYTES);
                }
            }
        }
        bytes
    }

    pub(crate) fn wait_until(&self, reached: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !reached() {
            assert!(std::time::Instant::now() < deadline, "used {} and counted {}", self.used(), self.counted());
            std::thread::yield_now();
        }
    }

    pub(crate) fn mount(&self, name: &str) -> Mount<'_> {
        Mount::new(self, name, Access::Write)
    }

    pub(crate) fn mount_read_only(&self, name: &str) -> Mount<'_> {
        Mount::new(self, name, Access::Read)
    }
}

/// What serves a directory, and knows nothing that another one knew of it.
fn share(dir: &Path, quota: &Arc<Quota>) -> Arc<Share> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let places = dir.with_extension(format!("places{}", MADE.fetch_add(1, Relaxed)));
    let root = OwnedFd::from(fs::File::open(dir).unwrap().into_parts().0);
    Arc::new(Share::new(root, &places, Arc::clone(quota) as Arc<dyn Room>))
}

/// One mount.
pub(crate) struct Mount<'a> {
    bench: &'a Bench,
    path: PathBuf,
    access: Access,
    device: Arc<std::fs::File>,
    /// Where requests go.
    way: Arc<Mutex<UnixStream>>,
}

impl<'a> Mount<'a> {
    fn new(bench: &'a Bench, name: &str, access: Access) -> Self {
        let path = bench.dir.path().join(name);
        let device = Arc::new(std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap());
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("volume"), &path, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let way = connect(bench, &bench.share, access, &device);
        let way = Arc::new(Mutex::new(way));
        let (asking, asked) = (Arc::clone(&device), Arc::clone(&way));
        std::thread::spawn(move || {
            let mut buffer = vec![0; MAX_MESSAGE_BYTES];
            // Until it is unmounted.
            while let Ok(read) = (&*asking).read(&mut buffer) {
                asked.lock().unwrap().write_all(&buffer[..read]).unwrap();
            }
        });
        Self { bench, path, access, device, way }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Answered by one that knows nothing of what was.
    pub(crate) fn serve_anew(&self) {
        let share = share(&self.bench.dir(), &self.bench.quota);
        *self.way.lock().unwrap() = connect(self.bench, &share, self.access, &self.device);
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
    }
}

fn connect(bench: &Bench, share: &Arc<Share>, access: Access, device: &Arc<std::fs::File>) -> UnixStream {
    let (here, there) = UnixStream::pair().unwrap();
    there.set_nonblocking(true).unwrap();
    let share = Arc::clone(share);
    let (ready, is_ready) = mpsc::channel();
    bench.runtime.spawn(async move {
        let there = tokio::net::UnixStream::from_std(there).unwrap();
        ready.send(()).unwrap();
        serve(share, access, &Gate::default().turn().await, there).await
    });
    is_ready.recv().unwrap();
    let (mut answers, device) = (here.try_clone().unwrap(), Arc::clone(device));
    std::thread::spawn(move || {
        let mut first = [0; 4];
        while answers.read_exact(&mut first).is_ok() {
            let mut message = vec![0; length(first, REPLY_HEAD_BYTES).unwrap()];
            message[..4].copy_from_slice(&first);
            answers.read_exact(&mut message[4..]).unwrap();
            // Nobody may wait for it any more.
            drop((&*device).write(&message));
        }
    });
    here
}
