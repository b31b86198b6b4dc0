"""Teachers: a frozen SAM behind one interface. Needs the extra `train`."""

from samdistill.teacher.load import load_teacher
from samdistill.teacher.sam import Embedding, Teacher, TeacherMasks

__all__ = ["Embedding", "Teacher", "TeacherMasks", "load_teacher"]
