"""Teachers: a frozen SAM behind one interface. Needs the extra `train`."""

from samdistill.teacher.load import load_teacher
from samdistill.teacher.propose import ProposeConfig
from samdistill.teacher.sam import Embedding, Teacher
from samdistill.teacher_frame import TeacherMasks

__all__ = ["Embedding", "ProposeConfig", "Teacher", "TeacherMasks", "load_teacher"]
