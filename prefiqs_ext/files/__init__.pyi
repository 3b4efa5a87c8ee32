# lazy_loader reads this file; it wants relative imports.
from .crops import find_largest_faces as find_largest_faces
from .images import InputImages as InputImages
from .images import Shard as Shard
from .paths import find_paths as find_paths
from .pipeline import ScoredFile as ScoredFile
from .pipeline import score_files as score_files
from .pipeline import score_images as score_images
from .records import COLUMNS as COLUMNS
from .records import Record as Record
from .select_rows import Pick as Pick
from .writer import Writer as Writer
