"""Tables, figures and verdicts from raw records."""

from benchmarks.extras import require_benchmarks_extra

require_benchmarks_extra()
