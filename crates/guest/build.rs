//! Puts the agent's own `epoll_ctl` and `epoll_wait` in the place of the C library's: src/told.rs says why.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The first two words make sure that the functions are there when the runtime, which stands behind them on the linker's line, asks.
    let words = ["-u,__wrap_epoll_ctl", "-u,__wrap_epoll_wait", "--wrap=epoll_ctl", "--wrap=epoll_wait"];
    for word in words {
        println!("cargo:rustc-link-arg-bins=-Wl,{word}");
    }
}
