__version__ = "0.1.0"

import warnings as _warnings
# fastai's layers use torch.jit.script, which torch calls deprecated: nothing that a reader can act on, in red above every chapter
_warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated')
