# lazy_loader reads this file; it wants relative imports.
from .crops import find_largest_faces as find_largest_faces
from .paths import find_paths as find_paths
from .pipeline import ScoredFile as ScoredFile
from .pipeline import score_files as score_files
from .records import COLUMNS as COLUMNS
from .records import Record as Record
from .select_rows import Pick as Pick
from .writer import Writer as Writer
