//! The packages that programs of the code interpreter import, and where they come from.
//!
//! Everything that E2B's own template names is there. Debian is asked first: its packages fit each other, and its security
//! updates reach whoever runs `apt-get upgrade`. A wheel is taken where Debian has none, or an older one than pandas accepts, or
//! one that pulls in a desktop or a cloud's clients. Wheels have E2B's versions where E2B names one; what a wheel needs is a Debian package or a wheel
//! of this list, since none pulls in others.

/// Debian packages that every code interpreter has.
pub(crate) const PACKAGES: &[&str] = &[
    // One font with the characters of Chinese, Japanese and Korean: 5 MB, where Noto's have 90.
    "fonts-wqy-microhei",
    "python3-aiohttp",
    "python3-bs4",
    "python3-docx",
    "python3-ipython",
    "python3-jinja2",
    "python3-joblib",
    "python3-lxml",
    "python3-matplotlib",
    // Plotly shows its figures by it.
    "python3-nbformat",
    "python3-numpy",
    "python3-openpyxl",
    "python3-pandas",
    "python3-pil",
    "python3-pytest",
    "python3-requests",
    "python3-scipy",
    "python3-seaborn",
    "python3-tenacity",
    "python3-tornado",
    "python3-tz",
    "python3-urllib3",
    "python3-yaml",
];

/// Wheels that every code interpreter has.
pub(crate) const WHEELS: &[&str] = &["bokeh==3.3.4", "plotly==5.19.0", "xlrd==2.0.1", "xyzservices==2023.10.1"];

/// Debian packages of the larger libraries.
pub(crate) const SCIENCE: &[&str] = &[
    "python3-cloudpickle",
    "python3-imageio",
    "python3-lazy-loader",
    "python3-msgpack",
    "python3-nltk",
    "python3-numba",
    "python3-platformdirs",
    "python3-pooch",
    "python3-pydantic",
    "python3-skimage",
    "python3-sklearn",
    "python3-soundfile",
    "python3-sympy",
    "python3-tqdm",
    "python3-typer",
    "python3-xarray",
];

/// Wheels of the larger libraries, with what spaCy and librosa need.
pub(crate) const SCIENCE_WHEELS: &[&str] = &[
    "audioread==3.0.1",
    "blis==0.7.11",
    "catalogue==2.0.10",
    "cloudpathlib==0.16.0",
    "confection==0.1.5",
    "cymem==2.0.8",
    "gensim==4.3.2",
    "langcodes==3.3.0",
    "librosa==0.10.1",
    "murmurhash==1.0.10",
    "opencv-python-headless==4.9.0.80",
    "preshed==3.0.9",
    "smart-open==6.4.0",
    "soxr==0.3.7",
    "spacy==3.7.4",
    "spacy-legacy==3.0.12",
    "spacy-loggers==1.0.5",
    "srsly==2.4.8",
    "textblob==0.18.0",
    "thinc==8.2.5",
    "wasabi==1.1.3",
    "weasel==0.3.4",
];
