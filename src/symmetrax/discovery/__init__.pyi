from ._certify import Certificate as Certificate
from ._cost import Cost as Cost
from ._find import find_symmetries as find_symmetries
from ._found import Found as Found
from ._plan import discovery_cost as discovery_cost
from ._report import Discovery as Discovery
