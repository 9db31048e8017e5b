//! The command line of `sudo`, as far as it means something where nobody is asked for a password.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
};

use super::{
    environment::Keep,
    link::{Request, Shell, Text},
};

/// How it is called.
pub(super) const USAGE: &str =
    "usage: sudo [-EHin] [-u USER] [-g GROUP] [-D DIRECTORY] [--preserve-env=LIST] [VAR=value]... [-s | COMMAND [ARGUMENT]...]";

/// What somebody wants.
#[derive(Debug)]
pub(super) enum Wanted {
    /// To run something.
    Run(Box<Asked>),
    /// To be told of this program.
    Version,
    Usage,
    /// To know what is allowed.
    List,
    /// What is about passwords, of which there are none.
    Nothing,
}

/// What to run, before the environment is looked at.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) keep: Keep,
    /// The directory to run it in. None: where the caller is.
    pub(super) directory: Option<OsString>,
}

/// Why a command line was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WordsError {
    /// No such option, or none that can be kept here.
    #[error("cannot understand option `{0}`")]
    Option(String),
    /// An option without its value.
    #[error("cannot use option `{0}` without a value")]
    NoValue(String),
    /// A value that is not text.
    #[error("cannot use the value of option `{0}`")]
    Value(String),
    /// Nothing to run.
    #[error("cannot run nothing: name a command")]
    Nothing,
}

/// Reads what stands after the program's name.
pub(super) fn parse(words: impl Iterator<Item = OsString>) -> Result<Wanted, WordsError> {
    let mut parser = Parser::default();
    let mut words = words.peekable();
    while let Some(word) = words.peek().map(|word| word.as_bytes().to_vec()) {
        match word.as_slice() {
            b"--" => {
                words.next();
                break;
            }
            [b'-', b'-', ..] => parser.long(&text(&word, "--")?, &mut next(&mut words))?,
            [b'-', _, ..] => parser.short(&text(&word, "-")?, &mut next(&mut words))?,
            _ => break,
        }
    }
    let words: Vec<Text> = words.map(|word| word.as_bytes().to_vec()).collect();
    parser.end(words)
}

/// Takes the option, and gives what follows when it is asked for.
fn next(words: &mut impl Iterator<Item = OsString>) -> impl FnMut() -> Option<OsString> {
    words.next();
    move || words.next()
}

fn text(word: &[u8], option: &str) -> Result<String, WordsError> {
    String::from_utf8(word.to_vec()).map_err(|_| WordsError::Value(option.to_owned()))
}

#[derive(Debug, Default)]
struct Parser {
    request: Request,
    all: bool,
    named: Vec<OsString>,
    directory: Option<OsString>,
    told: Option<Told>,
    /// Whether it may end without a command: it was about passwords.
    idle: bool,
}

#[derive(Debug, Clone, Copy)]
enum Told {
    Version,
    Usage,
    List,
}

impl Parser {
    fn long(&mut self, word: &str, more: &mut dyn FnMut() -> Option<OsString>) -> Result<(), WordsError> {
        let (name, given) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(OsString::from(value))));
        let letter = match name {
            "--preserve-env" => {
                match given {
                    Some(list) => self.named.extend(list.to_string_lossy().split(',').map(OsString::from)),
                    None => self.all = true,
                }
                return Ok(());
            }
            "--user" => 'u',
            "--group" => 'g',
            "--chdir" => 'D',
            "--prompt" => 'p',
            "--close-from" => 'C',
            "--login" => 'i',
            "--shell" => 's',
            "--set-home" => 'H',
            "--non-interactive" => 'n',
            "--stdin" => 'S',
            "--askpass" => 'A',
            "--reset-timestamp" => 'k',
            "--remove-timestamp" => 'K',
            "--validate" => 'v',
            "--list" => 'l',
            "--version" => 'V',
            "--help" => 'h',
            _ => return Err(WordsError::Option(word.to_owned())),
        };
        if takes_value(letter) {
            let value = given.or_else(more).ok_or_else(|| WordsError::NoValue(name.to_owned()))?;
            return self.value(letter, value);
        }
        if given.is_some() || !self.flag(letter) {
            return Err(WordsError::Option(word.to_owned()));
        }
        Ok(())
    }

    /// Letters after one dash: flags, and at last perhaps one with a value.
    fn short(&mut self, word: &str, more: &mut dyn FnMut() -> Option<OsString>) -> Result<(), WordsError> {
        let mut letters = word[1..].chars();
        while let Some(letter) = letters.next() {
            if takes_value(letter) {
                let rest = Some(letters.as_str()).filter(|rest| !rest.is_empty()).map(OsString::from);
                let value = rest.or_else(more).ok_or_else(|| WordsError::NoValue(format!("-{letter}")))?;
                return self.value(letter, value);
            }
            if !self.flag(letter) {
                return Err(WordsError::Option(format!("-{letter}")));
            }
        }
        Ok(())
    }

    fn value(&mut self, letter: char, value: OsString) -> Result<(), WordsError> {
        let as_text = |value: OsString| value.into_string().map_err(|_| WordsError::Value(format!("-{letter}")));
        match letter {
            'u' => self.request.user = Some(as_text(value)?),
            'g' => self.request.group = Some(as_text(value)?),
            'D' => self.directory = Some(value),
            // A prompt that is never shown, and descriptors that are not handed on anyway.
            _ => {}
        }
        Ok(())
    }

    /// Whether there is such a flag.
    fn flag(&mut self, letter: char) -> bool {
        match letter {
            'E' => self.all = true,
            'H' => self.request.sets_home = true,
            'i' => self.request.shell = Shell::Login,
            's' => self.request.shell = Shell::Plain,
            'k' | 'K' | 'v' => self.idle = true,
            'l' => self.told = Some(Told::List),
            'V' => self.told = Some(Told::Version),
            'h' => self.told = Some(Told::Usage),
            // About asking for a password, which never happens.
            'n' | 'S' | 'A' => {}
            _ => return false,
        }
        true
    }

    fn end(self, mut words: Vec<Text>) -> Result<Wanted, WordsError> {
        let Self { mut request, all, named, directory, told, idle } = self;
        match told {
            Some(Told::Version) => return Ok(Wanted::Version),
            Some(Told::Usage) => return Ok(Wanted::Usage),
            Some(Told::List) => return Ok(Wanted::List),
            None => {}
        }
        let sets = words.iter().take_while(|word| is_setting(word)).count();
        request.set = words.drain(..sets).collect();
        request.words = words;
        request.preserves = all;
        if request.words.is_empty() && request.shell == Shell::None {
            return if idle { Ok(Wanted::Nothing) } else { Err(WordsError::Nothing) };
        }
        let keep = if all { Keep::All } else { Keep::These(named) };
        Ok(Wanted::Run(Box::new(Asked { request, keep, directory })))
    }
}

fn takes_value(letter: char) -> bool {
    matches!(letter, 'u' | 'g' | 'D' | 'p' | 'C')
}

/// `NAME=value`. A path is none, whatever it has in it.
fn is_setting(word: &[u8]) -> bool {
    let name = word.split(|byte| *byte == b'=').next().unwrap_or_default();
    name.len() < word.len() && !name.is_empty() && !OsStr::from_bytes(name).as_bytes().contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<Wanted, WordsError> {
        parse(words.split_whitespace().map(OsString::from))
    }

    fn run(words: &str) -> Asked {
        let Ok(Wanted::Run(asked)) = parsed(words) else { panic!("`{words}` runs nothing") };
        *asked
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let asked = run("-nEu nobody -g users A=b C= ls -l -u x=y");
        assert_eq!((asked.request.user.as_deref(), asked.request.group.as_deref()), (Some("nobody"), Some("users")));
        assert_eq!(asked.request.set, [b"A=b".to_vec(), b"C=".to_vec()]);
        assert_eq!(asked.request.words.join(&b' '), b"ls -l -u x=y");
        assert_eq!((asked.keep, asked.request.preserves), (Keep::All, true));
        for words in ["-unobody id", "--user=nobody -- id", "--user nobody id", "-Hnunobody -S id"] {
            let asked = run(words);
            assert_eq!((asked.request.user.as_deref(), asked.request.words), (Some("nobody"), vec![b"id".to_vec()]), "{words}");
        }
        assert_eq!(run("--preserve-env=A,B env").keep, Keep::These(vec!["A".into(), "B".into()]));
        assert_eq!(run("./a=b c").request.words.len(), 2);
        assert_eq!(run("-D /tmp pwd").directory, Some("/tmp".into()));
        assert_eq!((run("-i").request.shell, run("-s echo").request.shell), (Shell::Login, Shell::Plain));
    }

    #[test]
    fn what_is_not_kept_is_refused() {
        for words in ["", "-E", "-u", "-Z ls", "-e /etc/passwd", "--login=yes ls", "--what ls", "A=b", "-b ls"] {
            assert!(parsed(words).is_err(), "{words}");
        }
        assert!(matches!(parsed("-v"), Ok(Wanted::Nothing)) && matches!(parsed("-k"), Ok(Wanted::Nothing)));
        assert!(matches!(parsed("-l"), Ok(Wanted::List)) && matches!(parsed("-V"), Ok(Wanted::Version)));
        assert!(matches!(parsed("-k ls"), Ok(Wanted::Run(_))), "it is run");
    }
}
