//! Another life of a kernel's memory: what it then draws, and what of it the program has asked to be the same.
//!
//! A kernel cannot be cloned here. What shows instead that it draws from something new is that a state which was put back is no
//! longer there: the numbers after it are others.

use serde_json::json;

use crate::harness::{Interpreter, Told, has};

async fn run(interpreter: &Interpreter, language: &str, code: &str) -> Told {
    let told = interpreter.run(json!({"code": code, "language": language})).await;
    assert!(told.error().is_none(), "{language}: {code}: {told:?}");
    told
}

/// Draws after `known`, by which a state is there that is known; whether another life has changed what is drawn.
async fn is_renewed(interpreter: &mut Interpreter, language: &str, [known, draw]: [&str; 2]) -> bool {
    let mut drawn = Vec::new();
    for another in [false, false, true] {
        run(interpreter, language, known).await;
        if another {
            interpreter.begin_era();
        }
        drawn.push(run(interpreter, language, draw).await.text("stdout"));
        assert!(drawn[0].trim().parse::<f64>().is_ok(), "{language}: {drawn:?}");
    }
    assert_eq!(drawn[0], drawn[1], "{language}");
    drawn[2] != drawn[0]
}

#[tokio::test]
async fn a_shell_draws_other_numbers_in_each_life_unless_it_was_seeded() {
    let mut interpreter = Interpreter::start(&[]);
    // The name is not written out, so that the kernel does not see that it is seeded: as a state that nobody asked for.
    assert!(is_renewed(&mut interpreter, "bash", ["eval RAND''OM=7", "echo $RANDOM"]).await);
    for seeded in ["(( RANDOM = 7 ))", "RANDOM=7"] {
        let mut interpreter = Interpreter::start(&[]);
        assert!(!is_renewed(&mut interpreter, "bash", [seeded, "echo $RANDOM"]).await, "{seeded}");
    }
}

#[tokio::test]
async fn javascript_draws_other_numbers_in_each_life_unless_it_was_seeded() {
    if !has("node", &["-e", "process.exit(process.version.slice(1).split('.')[0] < 18 ? 1 : 0)"]) {
        return;
    }
    let mut interpreter = Interpreter::start(&[]);
    let reach = "const own = require(Object.keys(require.cache).find((path) => path.endsWith('renew.js')))";
    run(&interpreter, "js", reach).await;
    let known = ["own.state.set([1, 2, 3, 4])", "console.log(Math.random())"];
    assert!(is_renewed(&mut interpreter, "js", known).await);
    run(&interpreter, "js", "Math.random = () => 0.25").await;
    interpreter.begin_era();
    assert_eq!(run(&interpreter, "js", "Math.random()").await.result(), Some("0.25"));
}

/// OpenSSL's state is out of reach, so what draws from it is replaced by what always draws the same.
#[test]
fn what_javascripts_crypto_draws_is_mixed_from_the_second_life_on() {
    const DRAWS: &str = "
        const crypto = require('crypto');
        const web = Object.getPrototypeOf(crypto.webcrypto);
        crypto.randomBytes = (size) => Buffer.alloc(size);
        crypto.randomFillSync = (buffer) => buffer;
        crypto.randomFill = (buffer, offset, size, told) => told(null, buffer);
        crypto.randomInt = () => 5;
        crypto.randomUUID = web.randomUUID = () => '';
        web.getRandomValues = (array) => array;
        const renewal = require(process.argv[1]);
        renewal.install();
        const draw = () => {
          let filled;
          crypto.randomFill(Buffer.alloc(32), 8, 16, (error, buffer) => { filled = buffer; });
          const all = [crypto.randomBytes(16), crypto.randomFillSync(Buffer.alloc(16)), crypto.getRandomValues(new Uint8Array(16)), filled];
          const numbers = [crypto.randomInt(2 ** 40), crypto.randomUUID(), crypto.webcrypto.randomUUID()];
          return [...all.map((bytes) => Buffer.from(bytes).toString('hex')), ...numbers];
        };
        const [first, again] = [draw(), draw()];
        renewal.renew();
        const second = draw();
        renewal.renew();
        const third = draw();
        const same = (one, other) => one.filter((drawn, at) => drawn === other[at]).length;
        const inside = second[3].startsWith('0'.repeat(16)) && second[3].endsWith('0'.repeat(16));
        console.log(same(first, again), same(first, second), same(second, third), inside, new Set(second).size);
    ";
    if !has("node", &["-e", "process.exit(process.version.slice(1).split('.')[0] < 18 ? 1 : 0)"]) {
        return;
    }
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/src/interpreter/kernels/renew.js");
    let ran = std::process::Command::new("node").args(["-e", DRAWS, program]).output().unwrap();
    let said = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert_eq!(said.0, "7 0 0 true 7\n", "{}", said.1);
}

#[tokio::test]
async fn r_draws_other_numbers_in_each_life_unless_it_was_seeded() {
    if !has("R", &["--version"]) {
        return;
    }
    let mut interpreter = Interpreter::start(&[]);
    let kept = ["if (!exists('kept')) { invisible(runif(1)); kept <- .Random.seed } else .Random.seed <- kept", "cat(runif(1))"];
    assert!(is_renewed(&mut interpreter, "r", kept).await);
    assert!(!is_renewed(&mut interpreter, "r", ["set.seed(7)", "cat(runif(1))"]).await);
}

#[tokio::test]
async fn java_draws_other_numbers_in_each_life() {
    if !has("java", &["--list-modules"]) || !has("javac", &["-version"]) {
        return;
    }
    let mut interpreter = Interpreter::start(&[]);
    let reach = "var owner = Class.forName(\"java.lang.Math$RandomNumberGeneratorHolder\");\n\
        var field = owner.getDeclaredField(\"randomNumberGenerator\");\n\
        var unsafe = sun.misc.Unsafe.class.getDeclaredField(\"theUnsafe\"); unsafe.setAccessible(true);\n\
        var memory = (sun.misc.Unsafe) unsafe.get(null); Math.random();\n\
        var held = (Random) memory.getObject(memory.staticFieldBase(field), memory.staticFieldOffset(field));";
    run(&interpreter, "java", reach).await;
    assert!(is_renewed(&mut interpreter, "java", ["held.setSeed(7)", "System.out.print(Math.random())"]).await);
}

/// Work that is sent to other processes takes functions by their names.
#[test]
fn what_notices_pythons_seeding_is_pickled_by_name() {
    const PICKLES: &str = "
import pickle, random, sys, types
sys.path.insert(0, sys.argv[1])
numpy = sys.modules['numpy'] = types.ModuleType('numpy')
numpy.random = sys.modules['numpy.random'] = types.ModuleType('numpy.random')
owner = random.Random()
numpy.random.seed, numpy.random.set_state = owner.seed, owner.setstate
import firkin_random
firkin_random.install()
for one in (random.seed, random.setstate, numpy.random.seed, numpy.random.set_state):
    assert pickle.loads(pickle.dumps(one)) is one, one
print('all')
";
    if !has("python3", &["-c", ""]) {
        return;
    }
    let programs = concat!(env!("CARGO_MANIFEST_DIR"), "/src/interpreter/kernels");
    let ran = std::process::Command::new("python3").args(["-B", "-c", PICKLES, programs]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "all\n", "{}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
async fn python_draws_other_numbers_in_each_life_unless_it_was_seeded() {
    if !has("python3", &["-c", "import IPython, numpy"]) {
        return;
    }
    let mut interpreter = Interpreter::start(&[]);
    // By ways that are not those of a program: as a state that nobody asked for.
    let python = ["import random; random.Random.seed(random._inst, 7)", "print(random.random())"];
    assert!(is_renewed(&mut interpreter, "python", python).await);
    let numpy = ["import numpy; numpy.random.mtrand._rand.seed(7)", "print(numpy.random.rand())"];
    assert!(is_renewed(&mut interpreter, "python", numpy).await);
    for seeded in [
        ["random.seed(7)", "print(random.random())"],
        ["from random import seed; seed(a=7)", "print(random.random())"],
        ["numpy.random.seed(7)", "print(numpy.random.rand())"],
        ["state = globals().get('state') or random.getstate(); random.setstate(state)", "print(random.random())"],
    ] {
        assert!(!is_renewed(&mut interpreter, "python", seeded).await, "{seeded:?}");
    }
    // Who seeds with nothing gives it back.
    run(&interpreter, "python", "random.seed()").await;
    assert!(is_renewed(&mut interpreter, "python", python).await);
}
